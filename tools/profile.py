"""python tools/profile.py: the same as `edkd profile`."""

from edkd.commands._command_line import run_command
from edkd.commands.profile import main

if __name__ == "__main__":
    run_command(main)
