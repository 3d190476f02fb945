"""python tools/sweep.py: the same as `edkd sweep`."""

from edkd.commands._command_line import run_command
from edkd.commands.sweep import main

if __name__ == "__main__":
    run_command(main)
