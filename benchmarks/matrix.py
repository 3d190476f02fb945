"""Every method on pairs of networks of all families: what works, what is refused, and why.

python benchmarks/matrix.py [--methods NAME ...] [--pairs TEACHER:STUDENT ...] [--short]
                            [--rounds N] [--device DEVICE] [--amp PRECISION]

Each cell trains four steps in two epochs on 20 digits, trains them again with a stop after three
steps and a resume, and compares all figures and weights bit for bit. It then evaluates the student
and exports it. A pair that a method cannot use must be refused in one line before training.

A teacher has random weights. The times of a step are ratios to the student alone, measured in turn,
with a full teacher cache where the cache serves the method.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from _cells import FAILED, OK, Cell, Pair, Place, run_cell, step_seconds, variants
from _common import machine, say, temporary_folder

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.engine.device import pick_device
from edkd.errors import UserError

PAIRS = (
    "resnet56:resnet20",
    "wrn_40_2:wrn_16_2",
    "vgg13:vgg8",
    "vgg13:MobileNetV2",
    "resnet32x4:ShuffleV1",
    "wrn_40_2:ShuffleV2",
    "ResNet50:vgg8",
)
SHORT = ("resnet14:resnet8",)
HEADER = (
    "| method | pair | result | step / student alone | extra parameters | cached | s |",
    "|---|---|---|--:|--:|---|--:|",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run all cells, print a line for each."""
    parser = ArgumentParser(description="Every method on pairs of networks of all families.")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="as KD, KD+AT or 'KD SOLVER.TRAINER=dot' (default: all, the update rules and the "
        "switches)",
    )
    parser.add_argument(
        "--pairs", nargs="+", metavar="TEACHER:STUDENT", help=f"default: {' '.join(PAIRS)}"
    )
    parser.add_argument("--short", action="store_true", help=f"only {SHORT[0]}, without times")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of two steps that are timed (default: 3)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", default="auto", help="as SOLVER.AMP (default: auto)")
    args = parser.parse_args(argv)

    root = temporary_folder()
    place = Place(root, root / "teachers", pick_device(args.device), args.amp)
    pairs = [as_pair(word) for word in args.pairs or (SHORT if args.short else PAIRS)]
    rounds = 0 if args.short else args.rounds
    say(f"{machine(place.device)}; digits, SOLVER.AMP {args.amp}")
    for line in HEADER:
        say(line)

    counts: Counter[str] = Counter()
    for variant in args.methods or variants():
        for pair in pairs:
            counts[one_cell(variant, pair, place, rounds)] += 1
    say()
    say(", ".join(f"{number} {status}" for status, number in counts.items()))
    if counts[FAILED]:
        raise UserError(f"{counts[FAILED]} cells failed; see the table")


def as_pair(word: str) -> Pair:
    """Two networks from "resnet56:resnet20"."""
    teacher, _, student = word.partition(":")
    if not student:
        raise UserError(f"--pairs {word}: write TEACHER:STUDENT, as resnet56:resnet20")
    return Pair(teacher, student)


def one_cell(variant: str, pair: Pair, place: Place, rounds: int) -> str:
    """Run a cell in a folder of its own and print its line; return its status."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=place.folder) as folder, quiet():
        own = place._replace(folder=Path(folder))
        cell = run_cell(variant, pair, own)
        ratio = ""
        if cell.status == OK and rounds:
            seconds = step_seconds(variant, pair, own, rounds)
            ratio = f"{seconds['method'] / seconds['alone']:.2f}"
    say(row(variant, pair, cell, ratio, time.perf_counter() - start))
    return cell.status


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what runs print."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def row(variant: str, pair: Pair, cell: Cell, ratio: str, seconds: float) -> str:
    """A line of the table."""
    result = f"{cell.status}: {cell.reason}" if cell.reason else cell.status
    extra = f"{cell.extra_parameters:,}" if cell.status == OK else ""
    cells = [variant, str(pair), result, ratio, extra, cell.served, f"{seconds:.1f}"]
    return f"| {' | '.join(text.replace('|', '/') for text in cells)} |"


if __name__ == "__main__":
    run_command(main)
