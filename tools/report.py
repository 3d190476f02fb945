"""python tools/report.py: the same as `edkd report`."""

from edkd.commands._command_line import run_command
from edkd.commands.report import main

if __name__ == "__main__":
    run_command(main)
