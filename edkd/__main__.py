"""The command `edkd`, which runs one of COMMANDS."""

import importlib
import os
import sys
from collections.abc import Sequence

from edkd import __version__
from edkd.commands._command_line import run_command
from edkd.errors import UserError
from edkd.hints import unknown

COMMANDS = {
    "train": "train a student, alone or with a teacher",
    "finetune": "train a pretrained network on images of your own",
    "eval": "accuracy of a model on the test set",
    "export": "write a student as ONNX, torch.export or safetensors, with a model card",
    "predict": "classes of your own images",
    "runs": "list runs with their states, or follow them until they end",
    "table": "methods over seeds for a paper: mean, deviation, verdict, published figure",
    "report": "compare finished runs: a table, and curves and errors as an HTML page",
    "figure": "draw figures of finished runs for a paper",
    "sweep": "train with several configurations, seeds and values of keys; also on Ray",
    "tune": "search hyper-parameters on held-out training images",
    "softlabels": "compute and store the teacher's outputs ahead of training",
    "memo": "list, verify or delete cached teacher outputs",
    "check-data": "read every image of a folder, and list what is wrong",
    "download": "fetch data sets and published teachers",
    "profile": "parameters, multiply-accumulates and latency of models",
    "list": "list methods, models, data sets, configurations, keys, figures, update rules, suites",
    "keys": "list the configuration keys",
    "completion": "print a script with which bash, zsh or fish completes these commands",
    "demo": "a teacher, a student alone and a distilled student, on digits",
}

TOGETHER = ("train", "finetune")
"""Commands that several processes run together."""

USAGE = """usage: edkd COMMAND [ARGUMENTS]

{commands}

edkd COMMAND --help describes a command. Examples:

  edkd train --cfg configs/digits/vanilla/resnet8.yaml
  edkd train --cfg configs/cifar100/edkd/res56_res20.yaml SOLVER.LR 0.1
  edkd eval output/cifar100_baselines/edkd,res56,res20
  edkd finetune torchvision/resnet50 DATASET.ROOT photos
  edkd export output/folder/kd --to onnx
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    name, *arguments = sys.argv[1:] if argv is None else argv or [""]
    if name in ("", "-h", "--help"):
        lines = [f"  {command:11} {what}" for command, what in COMMANDS.items()]
        sys.stdout.write(USAGE.format(commands="\n".join(lines)))
        return
    if name in ("-V", "--version"):
        sys.stdout.write(f"edkd {__version__}\n")
        return
    if name not in COMMANDS:
        raise UserError(unknown("command", name, COMMANDS))

    if name not in TOGETHER and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError(
            f"{name} runs in one process; start it without torchrun, which is for "
            f"{' and '.join(TOGETHER)}"
        )

    module = importlib.import_module(f"edkd.commands.{name.replace('-', '_')}")
    module.main(arguments)


def console() -> None:
    """The entry point of the installed command."""
    run_command(main, sys.argv[1:] or [""])


if __name__ == "__main__":
    console()
