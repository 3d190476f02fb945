"""The command predict."""

import argparse
import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkd.commands._command_line import ArgumentParser, Once
from edkd.commands._options import add_device, add_input, add_network, class_names, completion
from edkd.errors import StorageError, UserError, reason_of, warn
from edkd.invocation import command
from edkd.signals import hold
from edkd.whole_files import replace_file

if TYPE_CHECKING:
    from edkd.export.predicting import Prediction, Predictor

_TOP = 5
_WRONG = 20
"""Wrong predictions that are listed."""

DESCRIPTION = """Print the most probable classes of images.

MODEL is a student's checkpoint, the folder of a run, or a file of `edkd export` (.onnx or
.safetensors). Images are read and prepared as in evaluation. An image that cannot be read is
named and skipped; the exit code is then 2.

examples:
  {predict} output/digits/kd,res20,res8/student_best.onnx photo.jpg
  {predict} output/digits/kd,res20,res8 photos --csv classes.csv
  {predict} student_best.onnx photos/val --labels
  {predict} other.onnx photos --size 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, predict, print."""
    args = _parser().parse_args(argv)
    _check(args)
    names = class_names(args.names) if args.names else ()

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.dataset.readability import BadImage
        from edkd.engine.saved_run import Request
        from edkd.export.images import image_files
        from edkd.export.predicting import open_predictor, predict

    # Load.
    files = image_files(args.images)
    request = Request(args.network, args.which, args.model, args.dataset, args.plugin)
    predictor = open_predictor(request, completion(args), names, args.device)
    if args.labels and not predictor.class_names:
        raise UserError("--labels: the class names are not known; give a file of them with --names")

    # Predict.
    is_table = any(os.path.isdir(path) for path in args.images)
    top = args.top or (1 if is_table and not args.csv else _TOP)
    output = _output(args, files, is_table, predictor)
    num_bad = 0
    for found in predict(predictor, files, top, args.batch_size):
        if isinstance(found, BadImage):
            warn(f"cannot read the image {found}; it is skipped")
            num_bad += 1
        else:
            output.add(found)

    output.end()
    if num_bad:
        raise UserError(f"{num_bad} of {len(files)} images cannot be read; they are named above")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=command("predict"), description=DESCRIPTION.format(predict=command("predict"))
    )
    parser.add_argument("network", metavar="MODEL", help="a checkpoint, run or exported file")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")

    # The output.
    parser.add_argument(
        "--top",
        type=_at_least_one,
        metavar="K",
        help="classes to print for each image (default: 5; for a folder without --csv 1)",
    )
    parser.add_argument(
        "--csv",
        action=Once,
        default="",
        metavar="FILE",
        help="write a table of path, rank, class and probability; - for standard output",
    )
    parser.add_argument(
        "--labels",
        action="store_true",
        help="the images are in folders named after their classes, which are the given folders or "
        "in them: print the accuracy and the wrong predictions",
    )

    # The network.
    parser.add_argument(
        "--names", action=Once, default="", help="text file with one class name per line"
    )
    parser.add_argument(
        "--batch-size",
        type=_at_least_one,
        default=32,
        help="images of a forward pass (default: %(default)s)",
    )
    add_device(parser, "for checkpoints: ")
    add_network(parser)
    add_input(parser)
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def _check(args: argparse.Namespace) -> None:
    """Raise UserError where the CSV file cannot be written, before anything is computed."""
    if args.csv in ("", "-"):
        return
    path = Path(args.csv).expanduser()
    if path.suffix.lower() != ".csv":
        raise UserError(f"--csv {args.csv}: the name of the file must end in .csv")
    if not path.parent.is_dir():
        raise UserError(f"--csv {args.csv}: there is no folder {path.parent}; create it")


# Output.


class _Text:
    """Prints the classes of each image, or a line for each.

    Args:
        width: of the column of paths; 0: a block for each image.
    """

    def __init__(self, width: int) -> None:
        self.width = width

    def add(self, found: "Prediction") -> None:
        """Print an image."""
        from edkd.dataset.listing import printable

        pairs = list(zip(found.classes, found.probabilities, strict=True))
        path = printable(found.path)
        if self.width:
            shown = "  ".join(f"{100 * value:5.1f} % {name}" for name, value in pairs)
            print(f"{path:<{self.width}}  {shown}")
            return

        print(path)
        for name, value in pairs:
            print(f"  {100 * value:5.1f} %  {name}")

    def end(self) -> None:
        """Nothing more is printed."""


class _Csv:
    """Writes a row for each class of each image.

    Args:
        path: "-" for standard output.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.buffer: Any = sys.stdout if path == "-" else io.StringIO()
        self.writer = csv.writer(self.buffer, lineterminator="\n")
        self.writer.writerow(["path", "rank", "class", "probability"])

    def add(self, found: "Prediction") -> None:
        """Write an image."""
        pairs = zip(found.classes, found.probabilities, strict=True)
        for rank, (name, value) in enumerate(pairs, 1):
            self.writer.writerow([found.path, rank, name, f"{value:.6f}"])

    def end(self) -> None:
        """Replace the file as a whole; another process may write the same one."""
        if self.path == "-":
            return

        path = Path(self.path).expanduser()
        content = self.buffer.getvalue().encode(errors="backslashreplace")
        try:
            replace_file(path, content)
        except OSError as error:
            raise StorageError(f"cannot write --csv {path}: {reason_of(error)}") from error
        print(f"written to {path}")


class _Labelled:
    """Compares predictions with the names of folders, and passes them on.

    Args:
        images: files and folders, as given.
        is_aside: whether the comparison goes to standard error, as standard output has a table.
    """

    def __init__(
        self, output: Any, predictor: "Predictor", images: Sequence[str], is_aside: bool
    ) -> None:
        from edkd.export.predicting import folders_of

        self.output = output
        self.class_names = predictor.class_names
        self.folders = folders_of(images)
        self.stream = sys.stderr if is_aside else sys.stdout
        self.right = 0
        self.unlabelled = 0
        self.wrong: list[str] = []

    def add(self, found: "Prediction") -> None:
        """Count an image."""
        from edkd.dataset.listing import printable
        from edkd.export.predicting import label_of

        self.output.add(found)
        label = label_of(found.path, self.class_names, self.folders)
        if not label:
            self.unlabelled += 1
        elif label == found.classes[0]:
            self.right += 1
        else:
            share = f"{100 * found.probabilities[0]:.1f} %"
            self.wrong.append(f"  {printable(found.path)}: {found.classes[0]} ({share})")

    def end(self) -> None:
        """Print the accuracy and the wrong predictions."""
        from edkd.dataset.listing import shown

        self.output.end()
        number = self.right + len(self.wrong)
        if not number:
            raise UserError(
                "--labels: no image is in a folder with the name of a class "
                f"({shown(self.class_names)}); rename the folders, or leave --labels out"
            )

        share = f"top-1 {100 * self.right / number:.2f} %"
        print(f"{share}, {self.right} of {number} images are correct", file=self.stream)
        if self.unlabelled:
            no_class = "in no folder with the name of a class"
            print(f"{self.unlabelled} images are {no_class}", file=self.stream)
        if self.wrong:
            more = len(self.wrong) - _WRONG
            rest = [f"  and {more} more"] if more > 0 else []
            print("\n".join(["wrong:", *self.wrong[:_WRONG], *rest]), file=self.stream)


def _output(
    args: argparse.Namespace, files: Sequence[str], is_table: bool, predictor: "Predictor"
) -> Any:
    """Where predictions go."""
    from edkd.dataset.listing import printable

    width = max(len(printable(file)) for file in files) if is_table else 0
    output: Any = _Csv(args.csv) if args.csv else _Text(width)
    if not args.labels:
        return output
    return _Labelled(output, predictor, args.images, is_aside=args.csv == "-")
