"""The command demo."""

import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from edkd.commands import report
from edkd.commands._command_line import ArgumentParser
from edkd.commands._next_step import typed
from edkd.invocation import command
from edkd.paths import CONFIGS, short_path
from edkd.signals import Stopped, hold

DESCRIPTION = """Train a teacher, a student alone, and a distilled student, on handwritten digits.

Each is a run of the command train with a YAML file of configs/digits/, for each seed. A run that is
already there is continued, not repeated.

examples:
  {demo}
  {demo} --seeds 1 --verbose
  {demo} --prefix trials SOLVER.EPOCHS 20
"""

RUNS = {
    "teacher": "vanilla/resnet20.yaml",
    "student alone": "vanilla/resnet8.yaml",
    "student by EDKD": "edkd/res20_res8.yaml",
}

_PREFIX = "output"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, train, print the table, draw the curves, name the next commands."""
    parser = ArgumentParser(
        prog=command("demo"), description=DESCRIPTION.format(demo=command("demo"))
    )
    parser.add_argument("--prefix", default=_PREFIX, help="folder of all runs (default: output)")
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        choices=range(1, 100),
        metavar="N",
        help="number of seeds (default: 3)",
    )
    parser.add_argument("--device", default="auto", help="as in the command train")
    parser.add_argument("--verbose", action="store_true", help="show the whole log of each run")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys, for all runs")
    args = parser.parse_intermixed_args(argv)

    # Train.
    project = Path(args.prefix, "demo")
    runs = [(name, seed) for seed in range(1, args.seeds + 1) for name in RUNS]
    print(
        f"{len(runs)} runs on handwritten digits; the log of each is its worklog.txt in {project}"
    )
    try:
        for number, (name, seed) in enumerate(runs, 1):
            title = f"run {number} of {len(runs)}: {name}, seed {seed}"
            _train(title, project, name, seed, args)
    except Stopped as stopped:
        stopped.hint = "the same command continues from here"
        raise

    # Compare.
    seeds = range(1, args.seeds + 1)
    folders = [str(_folder(project, name, seed)) for name in RUNS for seed in seeds]
    print("\nHandwritten digits; ± is the standard deviation over the seeds:")
    report.main([*folders, "--picture", str(project / "curves.png")])

    print("\nTo try next: another method with the same teacher, all in one table, an evaluation:")
    for line in _next_commands(project, args):
        print(f"  {line}")


def _train(title: str, project: Path, name: str, seed: int, args: Namespace) -> None:
    """Train a run, or what is left of it."""
    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.engine.config.load import load_config
        from edkd.engine.run import train

    folder = _folder(project, name, seed)
    keys = _keys(project, name, seed, args.prefix)
    keys |= {"LOG.WANDB": "False", "LOG.PRINT": str(args.verbose)}
    opts = [*_words(keys), *args.opts]
    cfg = load_config(str(CONFIGS / "digits" / RUNS[name]), opts)
    resume = (folder / "config.yaml").is_file()
    begin = time.monotonic()

    with _Line(is_rewritten=not args.verbose) as line:
        trained = []

        def show(record: dict[str, float]) -> None:
            trained.append(record["epoch"])
            line.show(f"{title}, epoch {record['epoch']} of {cfg.SOLVER.EPOCHS}")

        line.show(title)
        result = train(cfg, opts, args.device, resume, on_epoch=show)

        took = "already there"
        if trained:
            took = f"{time.monotonic() - begin:.0f} s"
        line.end(f"{title}: {result['last_test_top1']:.2f} %, {took}")


def _keys(project: Path, name: str, seed: int, prefix: str) -> dict[str, str]:
    """The keys that make a configuration a run of the demo."""
    return {
        "LOG.PREFIX": prefix,
        "EXPERIMENT.PROJECT": project.name,
        "EXPERIMENT.NAME": _folder(project, name, seed).name,
        "SOLVER.SEED": str(seed),
        "DISTILLER.TEACHER_CKPT": str(_folder(project, "teacher", seed) / "student_best"),
    }


def _words(keys: dict[str, str]) -> list[str]:
    return [word for pair in keys.items() for word in pair]


def _folder(project: Path, name: str, seed: int) -> Path:
    return project / f"{name},seed={seed}"


def _next_commands(project: Path, args: Namespace) -> list[str]:
    """Three commands that work as written."""
    device = [] if args.device == "auto" else ["--device", args.device]

    # Another method.
    config = short_path(CONFIGS / "digits" / "dkd" / "res20_res8.yaml")
    keys = _keys(project, "student by DKD", 1, args.prefix)
    if args.prefix == _PREFIX:
        del keys["LOG.PREFIX"]

    distilled = _folder(project, "student by EDKD", 1)
    return [
        typed("train", "--cfg", config, *device, *_words(keys), *args.opts),
        typed("report", project, "--picture", project / "curves.png"),
        typed("eval", distilled, *device),
    ]


class _Line:
    """A line that is rewritten on a terminal; elsewhere only its final text is printed.

    Args:
        is_rewritten: False: each text is a line of its own.
    """

    def __init__(self, is_rewritten: bool) -> None:
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self.is_rewritten = is_rewritten and is_terminal
        self.shown = ""

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            print()

    def show(self, text: str) -> None:
        """Show how far it is."""
        if not self.is_rewritten:
            return
        most = shutil.get_terminal_size().columns - 1
        before = self.shown
        self.shown = text[:most]
        print(f"\r{self.shown:<{len(before)}}", end="", flush=True)

    def end(self, text: str) -> None:
        """Print the final text."""
        self.show("")
        self.shown = ""
        print(f"\r{text}" if self.is_rewritten else text, flush=True)
