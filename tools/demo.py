"""The main job in three minutes: python tools/demo.py [--prefix FOLDER] [--seeds N] [--device DEVICE] [KEY VALUE ...].

On handwritten digits, for each seed: a teacher, the student alone, the student taught by that teacher. Each is a run
of tools/train.py with a YAML file of configs/digits/; a run that is there already is gone on with, not repeated.
"""

from collections.abc import Sequence
from pathlib import Path

import report
import train

from edkd.errors import ArgumentParser, run_command

CONFIGS = Path(__file__).parents[1] / "configs/digits"
RUNS = {
    "teacher": "vanilla/resnet20.yaml",
    "student alone": "vanilla/resnet8.yaml",
    "student by EDKD": "edkd/res20_res8.yaml",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, train, print the table, draw the curves."""
    parser = ArgumentParser(description="Train a teacher, a student alone, and the student taught, on digits.")
    parser.add_argument("--prefix", default="output", help="folder of all runs (default: output)")
    parser.add_argument(
        "--seeds", type=int, default=3, choices=range(1, 100), metavar="N", help="repetitions (default: 3)"
    )
    parser.add_argument("--device", default="auto", help="as in tools/train.py")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="as in tools/train.py, for all runs")
    args = parser.parse_intermixed_args(argv)
    project = Path(args.prefix, "demo")
    for seed in range(1, args.seeds + 1):
        for name, config in RUNS.items():
            folder = project / f"{name},seed:{seed}"
            where = ["LOG.PREFIX", args.prefix, "EXPERIMENT.PROJECT", "demo", "EXPERIMENT.NAME", folder.name]
            teacher = ["DISTILLER.TEACHER_CKPT", f"{project}/teacher,seed:{seed}/student_best"]
            resume = ["--resume"] if (folder / "config.yaml").is_file() else []
            opts = [*where, *teacher, "SOLVER.SEED", str(seed), "LOG.WANDB", "False", *args.opts]
            train.main(["--cfg", str(CONFIGS / config), "--device", args.device, *resume, *opts])
    folders = [f"{project}/{name},seed:{seed}" for name in RUNS for seed in range(1, args.seeds + 1)]
    print(f"\nHandwritten digits, {args.seeds} seeds, mean ± standard deviation:")
    report.main([*folders, "--picture", f"{project}/curves.png"])


if __name__ == "__main__":
    run_command(main, stopped="stopped; running this again goes on from here")
