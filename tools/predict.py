"""python tools/predict.py: the same as `edkd predict`."""

from edkd.commands._command_line import run_command
from edkd.commands.predict import main

if __name__ == "__main__":
    run_command(main)
