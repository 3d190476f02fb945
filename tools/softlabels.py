"""python tools/softlabels.py: the same as `edkd softlabels`."""

from edkd.commands._command_line import run_command
from edkd.commands.softlabels import main

if __name__ == "__main__":
    run_command(main)
