"""The command finetune."""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkd.commands._command_line import ArgumentParser, HelpWithKeys, Once
from edkd.commands._next_step import typed
from edkd.commands._options import add_training
from edkd.errors import UserError
from edkd.invocation import command
from edkd.paths import CONFIGS, short_path
from edkd.signals import hold

if TYPE_CHECKING:
    from yacs.config import CfgNode

DEFAULT = CONFIGS / "folder" / "finetune.yaml"

WORDS = {"DISTILLER.STUDENT_CKPT": "--from", "DISTILLER.STUDENT": "MODEL"}
"""Keys in messages, and the words of this command that take their place."""

COMMAND_LINE = re.compile(r"('[^']* --cfg [^']*')")
"""A command in a message, to be typed as it stands."""

_KEPT = ("DATASET.", "MODEL.")
"""Groups of keys that decide the images and the network of a run."""

PRETRAINED = "pretrained"
"""DISTILLER.STUDENT_CKPT: the weights that come with the model."""

DESCRIPTION = """Train a pretrained network on images of your own, as a student or as a teacher.

examples:
  {finetune} timm/resnet50.a1_in1k DATASET.ROOT photos
  {finetune} torchvision/mobilenet_v3_small --head DATASET.ROOT photos
  {finetune} resnet20 --from weights.pth --cfg my.yaml SOLVER.EPOCHS 5

MODEL starts from its pretrained weights, with a new head if it was trained on other classes. This
is a run of the command train with DISTILLER.TYPE NONE and DISTILLER.STUDENT MODEL; the last line is
the command that distils from it.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, train, print how to distil from the result."""
    args = _parser().parse_intermixed_args(argv)
    _check_model(args.model)

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.engine.config.command_line import pairs
        from edkd.engine.config.load import load_config
        from edkd.engine.inputs import with_input_of_networks
        from edkd.engine.run import train
        from edkd.engine.run_folder import find_run, run_folder
        from edkd.world import is_first_launched

    given = dict(pairs(args.opts))
    own = _own_keys(args)
    _check_keys(given, own)
    words = [word for pair in ({**_tag(args, given), **own}).items() for word in pair]

    with _words_named():
        cfg = load_config(str(args.cfg), [*words, *args.opts], args.plugin)
        folder = run_folder(cfg, args.opts)
        if args.resume:  # it may have another name
            folder = find_run(with_input_of_networks(cfg), folder, args.opts)
        train(cfg, args.opts, args.device, args.resume)

    if is_first_launched():
        command_line = _next_command(args, cfg, folder / "student_best")
        print(f"to distil from it:\n  {command_line}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=command("finetune"),
        description=DESCRIPTION.format(finetune=command("finetune")),
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=HelpWithKeys, help="show this text and all keys")

    # The network.
    parser.add_argument("model", metavar="MODEL", help="its name, such as timm/resnet50.a1_in1k")
    parser.add_argument(
        "--from",
        dest="file",
        action=Once,
        default=PRETRAINED,
        metavar="FILE",
        help="a file of weights to start from (default: the model's pretrained weights)",
    )
    parser.add_argument(
        "--head",
        action="store_true",
        help="train the last layer alone (SOLVER.TRAIN_ONLY head)",
    )

    # As in the command train.
    add_training(parser, str(DEFAULT), " (default: configs/folder/finetune.yaml)")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="keys, such as DATASET.ROOT photos"
    )
    return parser


def _own_keys(args: argparse.Namespace) -> dict[str, str]:
    """The keys that this command sets."""
    keys = {
        "DISTILLER.TYPE": "NONE",
        "DISTILLER.STUDENT": args.model,
        "DISTILLER.STUDENT_CKPT": args.file,
    }
    return keys | {"SOLVER.TRAIN_ONLY": "head"} if args.head else keys


def _tag(args: argparse.Namespace, given: dict[str, Any]) -> dict[str, str]:
    """The name of the run, where the user gives none."""
    if {"EXPERIMENT.TAG", "EXPERIMENT.NAME"} & given.keys():
        return {}
    parts = ["finetune", args.model.replace("/", "_")]
    return {"EXPERIMENT.TAG": ",".join([*parts, "head"] if args.head else parts)}


def _check_model(model: str) -> None:
    """Raise UserError if the first word is a key instead of a model."""
    first, separator, _ = model.partition(".")
    if separator and first.isupper():
        raise UserError(
            f"{model} is a key, but the first word must be a model, such as timm/resnet50.a1_in1k; "
            f"write '{command('finetune')} MODEL {model} ...'"
        )


def _check_keys(given: dict[str, Any], own: dict[str, str]) -> None:
    """Raise UserError where the user gives a key that this command sets."""
    for key in given.keys() & own.keys():
        raise UserError(
            f"{key} is set by MODEL, --from FILE and --head of '{command('finetune')}'; leave it "
            f"out, or use '{command('train')}'"
        )


@contextmanager
def _words_named() -> Iterator[None]:
    """Messages name the words of this command, not the keys that these set.

    A message may tell the user to run the command train, which takes the keys.
    """
    try:
        yield
    except UserError as error:
        pieces = COMMAND_LINE.split(str(error))  # text and commands in turn
        for key, word in WORDS.items():
            pieces[::2] = [text.replace(key, word) for text in pieces[::2]]
        raise UserError("".join(pieces)) from error


def _next_command(args: argparse.Namespace, cfg: "CfgNode", file: Path) -> str:
    """The command that distils from the network, on the same images.

    Args:
        cfg: of the run; what it says of the images and of the model is kept.
        file: of the weights.
    """
    config = CONFIGS / cfg.DATASET.TYPE / "kd.yaml"
    has_config = config.is_file()
    shown = short_path(config if has_config else Path(args.cfg))
    words = ["--cfg", shown]
    for plugin in args.plugin:
        words += ["--plugin", plugin]

    keys = _kept_keys(cfg, str(shown))
    if not has_config:
        keys |= {"DISTILLER.TYPE": "KD", "DISTILLER.STUDENT": "MODEL"}
    keys |= {"DISTILLER.TEACHER": args.model, "DISTILLER.TEACHER_CKPT": str(file)}
    return typed("train", *words, *(word for pair in keys.items() for word in pair))


def _kept_keys(cfg: "CfgNode", file: str) -> dict[str, str]:
    """The keys of the images and of the model that a YAML file does not have as a configuration."""
    from edkd.engine.config.compare import differences, flatten
    from edkd.engine.config.load import file_values
    from edkd.engine.saved_run import as_option

    values = dict(flatten(cfg))
    names = [name for name in differences(file_values(file), cfg) if name.startswith(_KEPT)]
    return {name: as_option(values[name]) for name in names}
