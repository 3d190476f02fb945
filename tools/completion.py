"""python tools/completion.py: the same as `edkd completion`."""

from edkd.commands._command_line import run_command
from edkd.commands.completion import main

if __name__ == "__main__":
    run_command(main)
