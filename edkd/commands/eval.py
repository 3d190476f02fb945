"""The command eval."""

import argparse
import os
from collections.abc import Sequence

from edkd.commands._command_line import ArgumentParser, Once
from edkd.commands._options import add_device, add_plugin, add_which
from edkd.errors import UserError
from edkd.hints import hint
from edkd.invocation import command
from edkd.signals import hold

PUBLISHED = "pretrain"
"""In the place of a file: the published weights."""

DESCRIPTION = """Top-1 and top-5 accuracy of a model on the test set.

examples:
  {eval} output/cifar100_baselines/kd,res56,res20
  {eval} -m resnet56
  {eval} -m resnet20 -c weights.pth -d cifar10
  {eval} -m mynet -d mydata --plugin my_parts.py -c weights.pth

A run folder and its files name their model, data set and plugins. For other files, give -m and -d.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, evaluate, print a line."""
    args = _parser().parse_intermixed_args(argv)
    path, opts = _path_and_options(args)

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.engine.run import evaluate_checkpoint
        from edkd.engine.saved_run import Request, find_trained

    words = ["SOLVER.AMP", args.amp]
    if args.root:
        words += ["DATASET.ROOT", args.root]
    if args.batch_size:
        words += ["DATASET.TEST.BATCH_SIZE", args.batch_size]

    found = find_trained(
        Request(path, args.which, args.model, args.dataset, args.plugin, [*words, *opts])
    )
    file = str(found.file) if found.file else PUBLISHED
    result = evaluate_checkpoint(found.cfg, file, args.device, found.content)

    model = found.cfg.DISTILLER.STUDENT
    dataset = found.cfg.DATASET.TYPE
    amp = found.cfg.SOLVER.AMP
    precision = "float32" if amp == "off" else f"precision {amp}"
    where = f"; {file}" if found.run else ""
    print(
        f"{model} on {dataset}: top-1 {result['top1']:.2f} %, "
        f"top-5 {result['top5']:.2f} %, loss {result['loss']:.4f} ({precision}{where})"
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=command("eval"), description=DESCRIPTION.format(eval=command("eval"))
    )

    # What is evaluated.
    parser.add_argument(
        "-m",
        "--model",
        default="",
        help="architecture, such as resnet8x4 (default: the file's own)",
    )
    parser.add_argument(
        "-c",
        "--ckpt",
        action=Once,
        default="",
        help="file of weights, or folder of a run (default: the published weights)",
    )
    add_which(parser)

    # On which images, and how.
    parser.add_argument(
        "-d", "--dataset", default="", help="(default: that of the weights, else cifar100)"
    )
    parser.add_argument(
        "-bs", "--batch-size", default="", help="images of a batch (default: as suits the device)"
    )
    parser.add_argument(
        "--root", default="", help="folder of the data set (default: the run's, else data/)"
    )
    parser.add_argument(
        "--amp", default="off", help="auto, off, bf16 or fp16 (default: off, float32)"
    )
    add_plugin(parser)
    add_device(parser)
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="[RUN_FOLDER] [KEY VALUE]",
        help="folder of a run, or a file of weights; keys, such as MODEL.mynet.WIDTH 8",
    )
    return parser


def _path_and_options(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The path of the weights, "" for the published ones; the KEY VALUE pairs."""
    path = "" if args.ckpt == PUBLISHED else args.ckpt
    opts = list(args.opts)
    if not opts:
        return path, []
    if not _is_path(opts[0]):
        _check_first(opts)
        return path, opts

    first = opts.pop(0)
    more = [word for word in opts[:1] if os.path.exists(word)]
    for other in [args.ckpt, *more]:
        if other:
            raise UserError(f"two files of weights are given, {other} and {first}; give one")
    return first, opts


def _check_first(opts: Sequence[str]) -> None:
    """Raise UserError where the first of the words is meant as a path, and nothing is there."""
    word = opts[0]
    is_key = "." in word or "=" in word
    is_file = word[:1].islower() and _has_single(opts)
    if not is_key or is_file:
        near = hint(word, os.listdir())
        raise UserError(f"no file or folder {word}{near} (for a key, write KEY VALUE)")


def _has_single(opts: Sequence[str]) -> bool:
    """Whether a word is left over by KEY VALUE and KEY=VALUE."""
    left = list(opts)
    while len(left) > 1:
        del left[: 1 if "=" in left[0] else 2]
    return bool(left) and "=" not in left[0]


def _is_path(word: str) -> bool:
    """Whether a word is a path, not a configuration key."""
    has_separator = any(mark in word for mark in ("/", os.sep))
    return os.path.exists(word) or ("=" not in word and has_separator)
