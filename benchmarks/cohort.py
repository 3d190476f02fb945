"""A step of students that learn from one another, against a step of each alone, in turn.

python benchmarks/cohort.py [--student NAME] [--method NAME] [--device DEVICE] [--rounds N]
                            [--steps N]
"""

from collections.abc import Iterator, Sequence

import torch
from _common import in_turn, machine, make_trainer, say

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.engine.device import pick_device, precision_name
from edkd.engine.trainer import Trainer


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="The cost of learning together.")
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--method", default="DML")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps of a round")
    args = parser.parse_args(argv)
    device = pick_device(args.device)

    together = make_trainer(args.student, "", args.method, device)
    number = len(together.distiller.students())
    alone = [make_trainer(args.student, "", "NONE", device) for _ in range(number)]
    say(
        f"{machine(device)}; CIFAR-100, batch 64, {number} {args.student}, {args.method}, "
        f"{precision_name(together.amp)}"
    )

    runs = {"alone": [steps(trainer) for trainer in alone], "together": [steps(together)]}

    def run(name: str) -> None:
        for trainer_steps in runs[name]:
            for _ in range(args.steps):
                next(trainer_steps)

    seconds = in_turn({name: lambda name=name: run(name) for name in runs}, args.rounds, device)
    for name, value in seconds.items():
        say(f"  {name:9} {1e3 * value / args.steps:7.1f} ms for a step of all students")
    say(f"  together / alone {seconds['together'] / seconds['alone']:.3f}")


def steps(trainer: Trainer) -> Iterator[torch.Tensor]:
    """Training steps without end; no figure is read."""
    trainer.distiller.train()
    while True:
        for inputs in trainer.data.train.inputs(1):
            losses, _, _ = trainer.train_step(1, *inputs)
            yield losses["loss"]


if __name__ == "__main__":
    run_command(main)
