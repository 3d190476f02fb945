"""python tools/memo.py: the same as `edkd memo`."""

from edkd.commands._command_line import run_command
from edkd.commands.memo import main

if __name__ == "__main__":
    run_command(main)
