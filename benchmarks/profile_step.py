"""Where the time of a distillation step goes, and how far its arithmetic is from a large matrix product.

python benchmarks/profile_step.py [--pair TEACHER:STUDENT] [--method METHOD] [--device DEVICE] [--steps N]
"""

from collections.abc import Sequence

import torch
from _common import in_turn, machine, make_trainer, say, wait, with_memo
from step import PAIRS
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from edkd.engine.device import pick_device
from edkd.errors import ArgumentParser, run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="The kernels of a step, and its arithmetic against a large matrix product.")
    parser.add_argument("--pair", action="append", metavar="TEACHER:STUDENT", help=f"default: {' and '.join(PAIRS)}")
    parser.add_argument("--method", default="EDKD")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    say(machine(device))
    for pair in args.pair or PAIRS:
        profile_pair(pair, args.method, device, args.steps)


def profile_pair(pair: str, method: str, device: torch.device, steps: int) -> None:
    """Measure a pair and print its figures."""
    teacher, student = pair.split(":")
    trainer = make_trainer(student, teacher, method, device)
    memo = with_memo(trainer)
    trainer.distiller.train()
    inputs = next(trainer.data.train.inputs(1))
    with FlopCounterMode(display=False) as step_flops:
        trainer.step(1, *inputs)
    index, view = inputs
    with FlopCounterMode(display=False) as ask_flops:
        memo.ask(index, view)
    size = 4096
    left, right = (torch.randn(size, size, device=device, dtype=trainer.amp or torch.float32) for _ in range(2))
    work = {
        "step": (lambda: trainer.step(1, *inputs), step_flops.get_total_flops()),
        "teacher's answer": (lambda: memo.ask(index, view), ask_flops.get_total_flops()),
        f"matrix product {size}": (lambda: left @ right, 2 * size**3),
    }
    seconds = in_turn({name: run for name, (run, _) in work.items()}, 9, device)
    rates = {name: flops / seconds[name] / 1e9 for name, (_, flops) in work.items()}
    say(f"\n{teacher} -> {student}, {method}, batch {len(index)}, {trainer.precision()}")
    for name, (_, flops) in work.items():
        share = rates[name] / rates[f"matrix product {size}"]
        took = f"{1e3 * seconds[name]:8.1f} ms  {flops / 1e9:7.1f} GFLOP  {rates[name]:8.0f} GFLOP/s"
        say(f"  {name:20} {took}  {share:.0%}")
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(steps):
            trainer.step(1, *inputs)
        wait(device)
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = sorted(profiler.key_averages(), key=lambda event: -getattr(event, field))
    total = sum(getattr(event, field) for event in averages)
    say(f"  {'kernel':45} share   calls a step")
    for event in averages[:12]:
        say(f"  {event.key[:45]:45} {getattr(event, field) / total:5.1%}   {event.count / steps:5.0f}")


if __name__ == "__main__":
    run_command(main)
