"""The command demo."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from edkd.commands import report, train
from edkd.commands._command_line import ArgumentParser
from edkd.invocation import command
from edkd.paths import CONFIGS
from edkd.signals import Stopped

DESCRIPTION = """Train a teacher, a student alone, and a distilled student, on handwritten digits.

Each is a run of the command train with a YAML file of configs/digits/, for each seed. A run that is
already there is continued, not repeated.
"""

RUNS = {
    "teacher": "vanilla/resnet20.yaml",
    "student alone": "vanilla/resnet8.yaml",
    "student by EDKD": "edkd/res20_res8.yaml",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, train, print the table, draw the curves."""
    parser = ArgumentParser(prog=command("demo"), description=DESCRIPTION)
    parser.add_argument("--prefix", default="output", help="folder of all runs (default: output)")
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        choices=range(1, 100),
        metavar="N",
        help="number of seeds (default: 3)",
    )
    parser.add_argument("--device", default="auto", help="as in the command train")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys for all runs")
    args = parser.parse_intermixed_args(argv)

    project = Path(args.prefix, "demo")
    runs = [(name, seed) for seed in range(1, args.seeds + 1) for name in RUNS]
    try:
        for number, (name, seed) in enumerate(runs, 1):
            print(f"\nrun {number} of {len(runs)}: {name}, seed {seed}")
            train.main(_arguments(project, name, seed, args))
    except Stopped as stopped:
        stopped.hint = "the same command continues from here"
        raise

    folders = [
        str(project / f"{name},seed={seed}") for name in RUNS for _, seed in runs[:: len(RUNS)]
    ]
    print(f"\nHandwritten digits, {args.seeds} seeds, mean ± standard deviation:")
    report.main([*folders, "--picture", f"{project}/curves.png"])


def _arguments(project: Path, name: str, seed: int, args: Namespace) -> list[str]:
    """The command line of a run."""
    folder = project / f"{name},seed={seed}"
    keys = {
        "LOG.PREFIX": args.prefix,
        "LOG.WANDB": "False",
        "EXPERIMENT.PROJECT": project.name,
        "EXPERIMENT.NAME": folder.name,
        "SOLVER.SEED": str(seed),
        "DISTILLER.TEACHER_CKPT": str(project / f"teacher,seed={seed}" / "student_best"),
    }
    words = [word for pair in keys.items() for word in pair]
    resume = ["--resume"] if (folder / "config.yaml").is_file() else []
    config = str(CONFIGS / "digits" / RUNS[name])
    return ["--cfg", config, "--device", args.device, *resume, *words, *args.opts]
