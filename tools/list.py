"""python tools/list.py: the same as `edkd list`."""

from edkd.commands._command_line import run_command
from edkd.commands.list import main

if __name__ == "__main__":
    run_command(main)
