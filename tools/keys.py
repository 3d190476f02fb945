"""python tools/keys.py: the same as `edkd keys`."""

from edkd.commands._command_line import run_command
from edkd.commands.keys import main

if __name__ == "__main__":
    run_command(main)
