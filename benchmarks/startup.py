"""Seconds from the command to the end of the first step, and the heavy libraries imported by then.

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

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.errors import UserError

TRAIN = Path(__file__).parents[1] / "tools" / "train.py"
PLUGIN = """
import sys, time
from edkd.engine.train_step import TrainStep

HEAVY = ("wandb", "tensorboardX", "matplotlib", "sklearn", "torchvision")
train_step = TrainStep.__call__

def first_step(self, *inputs):
    train_step(self, *inputs)
    print("FIRST STEP", time.time(), *(name for name in HEAVY if name in sys.modules), flush=True)
    raise KeyboardInterrupt

TrainStep.__call__ = first_step
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="From the command to the first step.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="as in the command train")
    args = parser.parse_intermixed_args(argv)
    opts = args.opts or ["DISTILLER.TYPE", "NONE"]
    say(f"{machine(torch.device('cpu'))}; {' '.join(opts)}")

    for wandb in ("False", "True"):
        rounds = [first_step([*opts, "LOG.WANDB", wandb]) for _ in range(args.rounds + 1)]
        median = statistics.median(seconds for seconds, _ in rounds[1:])
        say(f"  LOG.WANDB {wandb:5}  median {median:.1f} s, imported: {rounds[0][1]}")


def first_step(opts: Sequence[str]) -> tuple[float, str]:
    """Seconds from the command to the end of the first step; the libraries imported by then."""
    with tempfile.TemporaryDirectory(prefix="edkd-benchmark-") as folder:
        plugin = Path(folder, "plugin.py")
        plugin.write_text(PLUGIN)
        command = [sys.executable, str(TRAIN), "--plugin", str(plugin), "LOG.PREFIX", folder, *opts]
        start = time.time()
        done = subprocess.run(command, capture_output=True, text=True)

    for line in done.stdout.splitlines():
        if line.startswith("FIRST STEP"):
            _, _, moment, *libraries = line.split()
            return float(moment) - start, " ".join(libraries)
    raise UserError(f"no first step: {done.stderr.strip()[-500:]}")


if __name__ == "__main__":
    run_command(main)
