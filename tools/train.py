"""python tools/train.py: the same as `edkd train`."""

from edkd.commands._command_line import run_command
from edkd.commands.train import main

if __name__ == "__main__":
    run_command(main)
