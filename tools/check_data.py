"""python tools/check_data.py: the same as `edkd check-data`."""

from edkd.commands._command_line import run_command
from edkd.commands.check_data import main

if __name__ == "__main__":
    run_command(main)
