"""python tools/figure.py: the same as `edkd figure`."""

from edkd.commands._command_line import run_command
from edkd.commands.figure import main

if __name__ == "__main__":
    run_command(main)
