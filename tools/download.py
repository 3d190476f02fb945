"""python tools/download.py: the same as `edkd download`."""

from edkd.commands._command_line import run_command
from edkd.commands.download import main

if __name__ == "__main__":
    run_command(main)
