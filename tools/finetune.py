"""python tools/finetune.py: the same as `edkd finetune`."""

from edkd.commands._command_line import run_command
from edkd.commands.finetune import main

if __name__ == "__main__":
    run_command(main)
