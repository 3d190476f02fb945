"""python tools/table.py: the same as `edkd table`."""

from edkd.commands._command_line import run_command
from edkd.commands.table import main

if __name__ == "__main__":
    run_command(main)
