"""A step of ours, with and without a teacher, against the plain loop of the field, in one process and in turn.

python benchmarks/step.py [--pair TEACHER:STUDENT] [--method METHOD] [--device DEVICE] [--rounds N] [--steps N]

The baseline is the plain loop: torchvision's transforms on PIL images in a DataLoader with 2 workers, the teacher in
every step, float32, eager, a figure read in every step. It runs the same networks and the same method.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from _common import in_turn, machine, make_trainer, say, with_memo
from torch.utils.data import DataLoader, Dataset

from edkd.distillers import Distiller
from edkd.engine.device import keep_freed_memory, pick_device
from edkd.engine.meter import Meter
from edkd.engine.trainer import Trainer
from edkd.errors import ArgumentParser, run_command

PAIRS = ("resnet32x4:resnet8x4", "resnet56:resnet20")
EPOCH = 50000


class PilImages(Dataset):
    """CIFAR-100 as torchvision serves it."""

    def __init__(self, image: np.ndarray, target: list[int]) -> None:
        from torchvision import transforms

        self.image, self.target = image, target
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
            ]
        )

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.image[index])), self.target[index], index


class PlainLoop:
    """The baseline."""

    def __init__(self, distiller: Distiller, trainer: Trainer) -> None:
        images, solver = trainer.data.train.images, trainer.cfg.SOLVER
        pictures = PilImages(images.image.permute(0, 2, 3, 1).cpu().numpy(), images.target.tolist())
        self.loader = DataLoader(pictures, solver.BATCH_SIZE, shuffle=True, num_workers=2)
        self.distiller, self.device = distiller, trainer.device
        self.optimizer = torch.optim.SGD(
            distiller.get_learnable_parameters(), solver.LR, solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY
        )
        self.batches = self.forever()
        distiller.train()

    def forever(self) -> Iterator[Any]:
        """Batches without end."""
        while True:
            yield from self.loader

    def run(self, steps: int) -> None:
        """Some steps, while glibc keeps what it keeps of itself at most; ours keeps more."""
        keep_freed_memory(self.device, 64 * 2**20)
        for _ in range(steps):
            image, target, index = (part.to(self.device) for part in next(self.batches))
            self.optimizer.zero_grad()
            logits, losses = self.distiller(image=image, target=target, index=index, epoch=1)
            loss = sum(value.mean() for value in losses.values())
            loss.backward()
            self.optimizer.step()
            loss.item(), (logits.argmax(1) == target).float().mean().item()
        keep_freed_memory(self.device)


class Ours:
    """Our loop, without what it writes."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.meter = trainer, Meter()
        self.inputs = self.forever()
        trainer.distiller.train()

    def forever(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Batches without end."""
        while True:
            yield from self.trainer.data.train.inputs(1)

    def run(self, steps: int) -> None:
        """Some steps."""
        for _ in range(steps):
            self.meter.add(*self.trainer.step(1, *next(self.inputs)))


def compare(pair: str, method: str, device: torch.device, rounds: int, steps: int) -> None:
    """Measure a pair and print its figures."""
    teacher, student = pair.split(":")
    trainer = make_trainer(student, teacher, method, device)
    memo = with_memo(trainer)
    keys = memo.keys(1)
    batch = trainer.cfg.SOLVER.BATCH_SIZE
    some = keys[: steps * batch]
    ours, alone = Ours(trainer), Ours(make_trainer(student, teacher, "NONE", device))
    plain = make_trainer(student, teacher, method, device)
    baseline = PlainLoop(plain.distiller.to(memory_format=torch.contiguous_format), plain)
    logits = torch.randn(len(keys), memo.table.shape[1]).to(memo.dtype)
    rows = logits.view(torch.uint8).numpy()
    for part in np.array_split(np.arange(len(keys)), 100):  # as if many runs had filled it
        memo.store.add(keys[part], rows[part])
    seconds = in_turn(
        {
            "baseline": lambda: baseline.run(steps),
            "student alone": lambda: alone.run(steps),
            "memo full": lambda: ours.run(steps),
            "fill": lambda: memo.store.add(some, memo.fill(some, lambda line: None)),
            "prepare": lambda: memo.prepare(1, lambda line: None),
        },
        rounds,
        device,
    )
    ms = {name: 1e3 * value / steps for name, value in seconds.items()}
    prepare = 1e3 * seconds["prepare"] / (len(keys) / batch)  # reading the memo, spread over the steps of an epoch
    full, cold = ms["memo full"] + prepare, ms["memo full"] + prepare + ms["fill"]
    say(f"\n{teacher} -> {student}, {method}, batch {batch}, {trainer.precision()}: milliseconds a step, median")
    say(f"  baseline                       {ms['baseline']:8.1f}")
    say(f"  student alone                  {ms['student alone']:8.1f}")
    say(f"  memo full                      {full:8.1f}   of them reading the memo {prepare:.2f}")
    say(f"  memo empty                     {cold:8.1f}   of them asking the teacher {ms['fill']:.1f}")
    say(f"  memo full / student alone      {full / ms['student alone']:8.3f}")
    say(f"  baseline / memo full           {ms['baseline'] / full:8.2f}")
    say(f"  baseline / memo empty          {ms['baseline'] / cold:8.2f}")
    say(f"  memo against teacher in the step, float32: largest difference of logits {difference(pair, device):.1e}")


def difference(pair: str, device: torch.device, images: int = 640) -> float:
    """Largest difference between what the memo remembers and what the teacher says in the step, in float32."""
    teacher, student = pair.split(":")
    trainer = make_trainer(student, teacher, "KD", device, ["SOLVER.AMP", "off"])
    network = trainer.distiller.teacher
    memo = with_memo(trainer)
    keys = memo.keys(1)[:images]
    remembered = torch.from_numpy(memo.fill(keys, lambda line: None)).view(torch.float32).to(device)
    batches = (trainer.data.train.batch(*inputs) for inputs in trainer.data.train.inputs(1))
    with torch.no_grad():
        said = torch.cat([network(next(batches).image)[0] for _ in range(images // trainer.cfg.SOLVER.BATCH_SIZE)])
    return (remembered - said).abs().max().item()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="A step of ours against the plain loop of the field.")
    parser.add_argument("--pair", action="append", metavar="TEACHER:STUDENT", help=f"default: {' and '.join(PAIRS)}")
    parser.add_argument("--method", default="EDKD")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="turns that count (default: 7)")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn (default: 10)")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    say(f"{machine(device)}; CIFAR-100; {args.rounds} turns of {args.steps} steps")
    for pair in args.pair or PAIRS:
        compare(pair, args.method, device, args.rounds, args.steps)


if __name__ == "__main__":
    run_command(main)
