"""Seconds from the command to the end of the first step on CIFAR-100, and which heavy libraries were imported by then.

python benchmarks/startup.py [--rounds N] [KEY VALUE ...]
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from _common import machine, say

from edkd.errors import ArgumentParser, UserError, run_command

TRAIN = Path(__file__).parents[1] / "tools/train.py"
PLUGIN = """
import sys, time
import torch
from edkd.engine.trainer import Trainer

def first_step(self, *inputs, step=Trainer.train_step):
    step(self, *inputs)
    heavy = [name for name in ("wandb", "tensorboardX", "matplotlib", "sklearn", "torchvision") if name in sys.modules]
    print("FIRST STEP", time.time(), *heavy, flush=True)
    raise KeyboardInterrupt

Trainer.train_step = first_step
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="From the command to the first step.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="as in tools/train.py")
    args = parser.parse_intermixed_args(argv)
    say(f"{machine(torch.device('cpu'))}; {' '.join(args.opts) or 'the student alone'}")
    for wandb in ("False", "True"):
        seconds = []
        for _ in range(args.rounds + 1):
            with tempfile.TemporaryDirectory(prefix="edkd-benchmark-") as folder:
                plugin = Path(folder, "plugin.py")
                plugin.write_text(PLUGIN)
                where = ["LOG.PREFIX", folder, "LOG.WANDB", wandb]
                command = [sys.executable, TRAIN, "--plugin", plugin, *where, *args.opts]
                start = time.time()
                done = subprocess.run(command, capture_output=True, text=True)
            found = [line.split() for line in done.stdout.splitlines() if line.startswith("FIRST STEP")]
            if not found:
                raise UserError(f"no first step: {done.stderr.strip()[-500:]}")
            seconds.append(float(found[0][2]) - start)
        say(f"  LOG.WANDB {wandb:5}  median {statistics.median(seconds[1:]):.1f} s, imported: {' '.join(found[0][3:])}")


if __name__ == "__main__":
    run_command(main)
