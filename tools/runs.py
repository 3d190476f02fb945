"""python tools/runs.py: the same as `edkd runs`."""

from edkd.commands._command_line import run_command
from edkd.commands.runs import main

if __name__ == "__main__":
    run_command(main)
