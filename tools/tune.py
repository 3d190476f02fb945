"""python tools/tune.py: the same as `edkd tune`."""

from edkd.commands._command_line import run_command
from edkd.commands.tune import main

if __name__ == "__main__":
    run_command(main)
