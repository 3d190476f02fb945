"""The command export."""

import argparse
from collections.abc import Sequence

from edkd.commands._command_line import ArgumentParser, Once
from edkd.commands._options import add_input, add_network, completion
from edkd.errors import UserError
from edkd.hints import unknown
from edkd.invocation import command
from edkd.signals import hold

FORMATS = ("onnx", "torch-export", "safetensors")

CALIBRATE = 256

DESCRIPTION = """Write a student as a file for other programs, with a model card beside it.

onnx           one graph for onnxruntime and others: input `image`, output `logits`
torch-export   a program of torch.export, which runs without the code of the model
safetensors    the weights, under the model's own keys

The outputs are compared with those of the checkpoint on images of the test set before a file is
written. Classes, image size and normalisation are in its metadata.

examples:
  {export} output/digits/kd,res20,res8 --to onnx
  {export} output/digits/kd,res20,res8/student_best --to onnx --int8
  {export} weights.pth -m resnet20 -d cifar10 --to safetensors --out resnet20.safetensors
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, export, print a line for each file."""
    args = _parser().parse_args(argv)
    _check(args)

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.engine.saved_run import Request
        from edkd.export.exporting import Options, export

    opts = ["DATASET.ROOT", args.root] if args.root else []
    request = Request(args.path, args.which, args.model, args.dataset, args.plugin, opts)
    options = Options(
        to=args.to,
        out=args.out,
        int8=args.int8,
        calibrate=args.calibrate or CALIBRATE,
        images=args.check,
        force=args.force,
    )
    export(request, options, completion(args), lambda line: print(line, flush=True))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=command("export"), description=DESCRIPTION.format(export=command("export"))
    )
    parser.add_argument(
        "path", metavar="RUN_FOLDER_OR_FILE", help="folder of a run, or a file of weights"
    )
    parser.add_argument(
        "--to", action=Once, required=True, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}"
    )

    # The files.
    parser.add_argument(
        "--out",
        action=Once,
        default="",
        metavar="FILE_OR_FOLDER",
        help="where to write (default: beside the checkpoint, such as student_best.onnx)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace files that exist (default: refuse)"
    )

    # INT8.
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also write <name>.int8.onnx, quantised by onnxruntime, and print the accuracy "
        "before and after",
    )
    parser.add_argument(
        "--calibrate",
        type=int,
        metavar="N",
        help=f"number of training images for the calibration of INT8 (default: {CALIBRATE})",
    )

    # Images.
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="IMAGES",
        help="compare on these image files or folders (default: images of the test set)",
    )
    parser.add_argument(
        "--root", action=Once, default="", help="folder of the data set (default: the run's)"
    )
    add_network(parser)
    add_input(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not fit together."""
    if args.to not in FORMATS:
        raise UserError(f"--to: {unknown('format', args.to, FORMATS)}")
    if args.int8 and args.to != "onnx":
        raise UserError(f"--int8 writes an ONNX file; use --to onnx, not --to {args.to}")
    if args.calibrate is None:
        return
    if args.calibrate < 1:
        raise UserError(f"--calibrate {args.calibrate}: give the number of images, at least 1")
    if not args.int8:
        raise UserError(f"--calibrate {args.calibrate} is for --int8; add that, or leave it out")
