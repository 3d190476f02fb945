"""python tools/demo.py: the same as `edkd demo`."""

from edkd.commands._command_line import run_command
from edkd.commands.demo import main

if __name__ == "__main__":
    run_command(main)
