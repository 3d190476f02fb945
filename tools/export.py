"""python tools/export.py: the same as `edkd export`."""

from edkd.commands._command_line import run_command
from edkd.commands.export import main

if __name__ == "__main__":
    run_command(main)
