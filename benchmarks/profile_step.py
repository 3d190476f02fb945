"""Where the time of a distillation step goes, and its arithmetic against a large matrix product.

python benchmarks/profile_step.py [--pair TEACHER:STUDENT] [--method NAME] [--device DEVICE]
                                  [--steps N]
"""

from collections.abc import Sequence

import torch
from _common import in_turn, machine, make_trainer, say, wait, with_cache
from step import PAIRS
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.engine.device import pick_device, precision_name
from edkd.engine.trainer import Trainer

MATRIX = 4096


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="The kernels of a step, and its arithmetic.")
    parser.add_argument(
        "--pair",
        action="append",
        metavar="TEACHER:STUDENT",
        help=f"default: {' and '.join(PAIRS)}",
    )
    parser.add_argument("--method", default="EDKD")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    say(machine(device))
    for pair in args.pair or PAIRS:
        teacher, student = pair.split(":")
        trainer = make_trainer(student, teacher, args.method, device)
        say(f"\n{teacher} -> {student}, {args.method}, {precision_name(trainer.amp)}")
        report_arithmetic(trainer)
        report_kernels(trainer, args.steps)


def report_arithmetic(trainer: Trainer) -> None:
    """Print the rate of a step and of a teacher's forward pass beside a matrix product's."""
    memo = with_cache(trainer).memos[0]
    trainer.distiller.train()
    inputs = next(trainer.data.train.inputs(1))
    with FlopCounterMode(display=False) as step_flops:
        trainer.step(1, *inputs)
    index, number = inputs
    with FlopCounterMode(display=False) as teacher_flops:
        memo.compute(index, number)

    options = {"device": trainer.device, "dtype": trainer.amp or torch.float32}
    left = torch.randn(MATRIX, MATRIX, **options)
    right = torch.randn(MATRIX, MATRIX, **options)
    product = f"matrix product {MATRIX}"
    runs = {
        "step": lambda: trainer.step(1, *inputs),
        "teacher": lambda: memo.compute(index, number),
        product: lambda: left @ right,
    }
    flops = {
        "step": step_flops.get_total_flops(),
        "teacher": teacher_flops.get_total_flops(),
        product: 2 * MATRIX**3,
    }
    seconds = in_turn(runs, 9, trainer.device)

    rates = {name: flops[name] / seconds[name] / 1e9 for name in runs}
    for name in runs:
        took = f"{1e3 * seconds[name]:8.1f} ms  {flops[name] / 1e9:7.1f} GFLOP"
        say(f"  {name:20} {took}  {rates[name]:8.0f} GFLOP/s  {rates[name] / rates[product]:.0%}")


def report_kernels(trainer: Trainer, steps: int) -> None:
    """Print the kernels that take the most time."""
    inputs = next(trainer.data.train.inputs(1))
    is_cuda = trainer.device.type == "cuda"
    activity = ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(steps):
            trainer.step(1, *inputs)
        wait(trainer.device)

    field = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    averages = sorted(profiler.key_averages(), key=lambda event: -getattr(event, field))
    total = sum(getattr(event, field) for event in averages)
    say(f"  {'kernel':45} share   calls in a step")
    for event in averages[:12]:
        share = getattr(event, field) / total
        say(f"  {event.key[:45]:45} {share:5.1%}   {event.count / steps:5.0f}")


if __name__ == "__main__":
    run_command(main)
