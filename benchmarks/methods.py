"""All methods on one pair with one short protocol: the table of docs/methods.md.

python benchmarks/methods.py [METHOD ...] [--table] [--dataset NAME] [--pair FILE] [--epochs N]
                             [--output FOLDER] [--rounds N] [--device DEVICE]
                             [--set KEY=VALUE ...]

The methods are trained one after the other, each in a folder of its own below output/methods/. A
method that has a result is not trained again; one that was stopped continues.

Each method is configured by configs/<data set>/<method>/<pair>.yaml, else by its file in controls/
for the student, else by the file of KD with the method's defaults. A switch or an update rule is
configured by its own file for the pair, such as lskd/kd_<pair>.yaml, if there is one. Learning rate
stages are at 3/5 and 4/5 of the epochs. Warm-ups of the method last one epoch, so terms that grow
in each epoch have their full weight from the start.

The times of a step are ratios to the student alone: both are measured in turn, right after the
training, with the cache that the training has filled.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _cells import served_by_cache, variants
from _common import in_turn, machine, say
from _stepping import stepper

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.engine.config.compare import flatten, unused_groups
from edkd.engine.config.load import load_config
from edkd.engine.device import pick_device
from edkd.engine.run import train
from edkd.engine.run_folder import CONFIG, run_folder
from edkd.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STEP = "step.json"
HEADER = (
    "| method | top-1, last | top-1, best | step / student alone | extra parameters | cached |",
    "|---|--:|--:|--:|--:|---|",
)


class Protocol(NamedTuple):
    """How all methods are trained."""

    dataset: str
    pair: str
    """Name of the files of the pair, as "res56_res20"."""
    epochs: int
    output: str
    words: Sequence[str]
    """Further keys, as KEY=VALUE."""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, train what has no result, print the table."""
    parser = ArgumentParser(description="All methods on one pair by one short protocol.")
    parser.add_argument(
        "methods", nargs="*", metavar="METHOD", help="as KD, KD+AT or 'KD SOLVER.TRAINER=dot'"
    )
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--dataset", default="cifar100", help="(default: cifar100)")
    parser.add_argument("--pair", default="res56_res20", metavar="FILE", help="without .yaml")
    parser.add_argument("--epochs", type=int, default=5, help="default: 5")
    parser.add_argument("--output", default="output", help="LOG.PREFIX (default: output)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of 10 steps that are timed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="words")
    args = parser.parse_intermixed_args(argv)

    protocol = Protocol(args.dataset, args.pair, args.epochs, args.output, args.words)
    device = pick_device(args.device)
    chosen = args.methods or variants()
    failed = {} if args.table else trained(chosen, protocol, device, args.rounds)

    say(f"{machine(device)}; {protocol.dataset}, {protocol.pair}, {protocol.epochs} epochs")
    for line in (*HEADER, *rows(chosen, protocol)):
        say(line)
    for variant, reason in failed.items():
        say(f"{variant}: {reason}")
    if failed:
        raise UserError(f"{len(failed)} of {len(chosen)} have no result: {', '.join(failed)}")


# Training.


def trained(
    chosen: Sequence[str], protocol: Protocol, device: torch.device, rounds: int
) -> dict[str, str]:
    """Train the methods that have no result; return those that failed, with the reason."""
    failed = {}
    for variant in chosen:
        try:
            train_one(variant, protocol, device)
            time_one(variant, protocol, device, rounds)
        except UserError as error:  # as of a method that cannot use these networks
            failed[variant] = str(error)
        except Exception as error:  # the others are trained all the same
            failed[variant] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return failed


def train_one(variant: str, protocol: Protocol, device: torch.device) -> None:
    """Train a method, unless it has a result."""
    cfg = config_of(variant, protocol)
    folder = run_folder(cfg)
    if not (folder / "result.json").is_file():
        train(cfg, (), device, resume=(folder / CONFIG).is_file())


def time_one(variant: str, protocol: Protocol, device: torch.device, rounds: int) -> None:
    """Measure a step of a method and of the student alone, unless that was done."""
    cfg = config_of(variant, protocol)
    folder = run_folder(cfg)
    if (folder / STEP).is_file():
        return

    configs = {"alone": config_of("NONE", protocol, cfg.DISTILLER.STUDENT), "method": cfg}
    runs = {
        name: functools.partial(stepper(own, folder, device), 10) for name, own in configs.items()
    }
    seconds = in_turn(runs, rounds, device)
    facts = {name: value / 10 for name, value in seconds.items()} | {"machine": machine(device)}
    (folder / STEP).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def config_of(variant: str, protocol: Protocol, student: str = "") -> Any:
    """The configuration of a method under a protocol.

    Args:
        student: instead of the one of the pair.
    """
    method, *own = variant.split()
    file = file_of(method, own, protocol)
    words = [
        f"DISTILLER.TYPE={method}",
        "EXPERIMENT.PROJECT=methods",
        f"EXPERIMENT.NAME={protocol.pair},{','.join(variant.split())}",
        f"SOLVER.EPOCHS={protocol.epochs}",
        f"SOLVER.LR_DECAY_STAGES={stages(protocol.epochs)}",
        f"LOG.PREFIX={protocol.output}",
        "LOG.WANDB=False",
    ]
    words += [f"DISTILLER.STUDENT={student}"] if student else []
    words += own
    shorter = [f"{key}=1" for key in warmups(load_config(str(file), words))]
    return load_config(str(file), [*words, *shorter, *protocol.words])


def file_of(method: str, own: Sequence[str], protocol: Protocol) -> Path:
    """The file of a switch or an update rule for the pair, else of the method, else of KD.

    A method without a teacher may be among the controls, as uskd_res20.yaml.
    """
    folder = CONFIGS / protocol.dataset
    files = []
    for word in own:  # as DISTILLER.LSKD=True, SOLVER.TRAINER=dot
        key, _, value = word.partition("=")
        name = key.rpartition(".")[2] if value == "True" else value
        files.append(folder / name.lower() / f"{method.lower()}_{protocol.pair}.yaml")

    student = protocol.pair.rpartition("_")[2]
    files += [
        folder / method.lower() / f"{protocol.pair}.yaml",
        folder / "controls" / f"{method.lower()}_{student}.yaml",
        folder / "kd" / f"{protocol.pair}.yaml",
    ]
    return next(file for file in files if file.is_file())


def stages(epochs: int) -> list[int]:
    """After 3/5 and 4/5 of the epochs."""
    return sorted({epochs * 3 // 5, epochs * 4 // 5} - {0})


def warmups(cfg: Any) -> list[str]:
    """The keys in use that count the epochs of a warm-up."""
    unused = unused_groups(cfg)
    return [
        name
        for name, value in flatten(cfg)
        if value and "WARMUP" in name.rpartition(".")[2] and not name.startswith(unused)
    ]


# The table.


def rows(chosen: Sequence[str], protocol: Protocol) -> Iterator[str]:
    """A line for each method that has a result."""
    for variant in chosen:
        folder = run_folder(config_of(variant, protocol))
        if not (folder / "result.json").is_file():
            continue
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        tops = [accuracies(result, which) for which in ("last", "best")]
        extra = f"{result['extra_parameters']:,}"
        cells = [variant, *tops, ratio(folder), extra, served_by_cache(folder)]
        yield f"| {' | '.join(cells)} |"


def accuracies(result: dict[str, Any], which: str) -> str:
    """Top-1 in percent on the test set, of each student."""
    prefix = f"{which}_test_"
    names = [name for name in result if name.startswith(prefix) and name.endswith("top1")]
    single = f"{prefix}top1"
    of_students = [name for name in names if "student" in name]
    shown = of_students or [single]
    return ", ".join(f"{result[name]:.2f}" for name in shown)


def ratio(folder: Path) -> str:
    """The time of a step over that of the student alone; "" where it was not measured."""
    path = folder / STEP
    if not path.is_file():
        return ""
    facts = json.loads(path.read_text(encoding="utf-8"))
    return f"{facts['method'] / facts['alone']:.2f}"


if __name__ == "__main__":
    run_command(main)
