"""The gradient of the terms of each method, compared with that of the cross-entropy.

python benchmarks/gradients.py [METHOD ...] [--dataset NAME] [--pair FILE] [--steps N]
                               [--device DEVICE] [--set KEY=VALUE ...]

For each method: the norm of the gradient of all its terms except the cross-entropy, divided by that
of the cross-entropy with weight 1. The gradients are with respect to the student's weights, and
their norms are summed over the first batches of the first epoch. Methods are named and configured
as in benchmarks/methods.py. With a ratio of 10, the terms make a step 10 times as large as that of
the student alone.

The student is untrained; --set DISTILLER.STUDENT_CKPT=FILE loads its weights from a file. A warm-up
counts as finished. Nothing is trained or written. An update rule that changes gradients is not
applied.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from _cells import variants
from _common import machine, say, temporary_folder
from _stepping import ready_trainer
from methods import Protocol, config_of
from torch import Tensor

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.engine.device import pick_device
from edkd.engine.trainer import Trainer
from edkd.errors import UserError

TASK = ("loss_ce", "loss")
"""The term of the labels, and the sum of all terms."""

HEADER = (
    "| method | gradient of its terms / of the cross-entropy |",
    "|---|--:|",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, print a line for each method."""
    parser = ArgumentParser(description="Gradients of the terms of methods.")
    parser.add_argument(
        "methods", nargs="*", metavar="METHOD", help="as KD, KD+AT or 'RLD RLD.BETA=2'"
    )
    parser.add_argument("--dataset", default="cifar100", help="(default: cifar100)")
    parser.add_argument("--pair", default="res56_res20", metavar="FILE", help="without .yaml")
    parser.add_argument("--steps", type=int, default=4, help="batches (default: 4)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="words")
    args = parser.parse_intermixed_args(argv)

    device = pick_device(args.device)
    words = [*args.words, "TEACHER_MEMO.ENABLED=False", "DISTILLER.CHECK_TEACHER=False"]
    protocol = Protocol(args.dataset, args.pair, 1, str(temporary_folder()), words)

    say(f"{machine(device)}; {args.dataset}, {args.pair}, {args.steps} batches")
    for line in HEADER:
        say(line)
    for variant in args.methods or variants():
        say(f"| {variant} | {shown(config_of(variant, protocol), device, args.steps)} |")


def shown(cfg: Any, device: torch.device, steps: int) -> str:
    """The ratio of a configuration as text, or why there is none."""
    try:
        trainer = ready_trainer(cfg, temporary_folder(), device)
    except UserError as error:  # as of a method that cannot use these networks
        return str(error)
    if trainer.distiller.is_cohort:
        return "several students"

    found = ratio(trainer, steps)
    return f"{found:.1f}" if found else "no other term"


def ratio(trainer: Trainer, steps: int) -> float:
    """Norm of the gradient of a method's terms over that of the cross-entropy; 0.0: it has none."""
    step = trainer.train_step
    student = trainer.distiller.student
    weights = [each for each in student.parameters() if each.requires_grad]
    norms = {"terms": 0.0, "task": 0.0}

    for inputs in itertools.islice(trainer.data.train.inputs(1), steps):
        batch = step.batch(1, *inputs)
        losses, logits = step.forward(batch)
        own = [loss for name, loss in losses.items() if name not in TASK]
        if not own:
            return 0.0

        task = F.cross_entropy(logits.float(), batch.target)
        norms["terms"] += norm_of(torch.stack(own).sum(), weights)
        norms["task"] += norm_of(task, weights)
    return norms["terms"] / norms["task"]


def norm_of(loss: Tensor, weights: Sequence[Tensor]) -> float:
    """Norm of the gradient of a loss for all weights together."""
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    present = [gradient.flatten() for gradient in gradients if gradient is not None]
    return torch.cat(present).norm().item()


if __name__ == "__main__":
    run_command(main)
