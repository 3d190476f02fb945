"""The command figure."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from edkd.commands._command_line import ArgumentParser, Once, given_path
from edkd.commands._options import add_device, add_which, positive
from edkd.errors import UserError
from edkd.figures import FIGURES, Figure
from edkd.figures.drawing import FORMATS, WIDTHS, Options, style
from edkd.hints import unknown
from edkd.invocation import command
from edkd.signals import hold

FOLDER = Path("figures")
"""Where figures go by default."""

_HIGHEST_SEED = 2**32 - 1
"""That of NumPy."""

DESCRIPTION = """Draw a figure of finished runs for a paper, as PNG and PDF.

{kinds}

examples:
  {figure} curves output/digits/* --what loss
  {figure} tsne output/digits/kd,res20,res8 output/digits/vanilla,resnet8 --teacher
  {figure} correlation output/digits/kd,res20,res8 output/digits/dkd,res20,res8 --size page
  {figure} cka output/digits/kd,res20,res8 --data
  {figure} landscape output/digits/kd,res20,res8 --dimensions 1

{figure} KIND --help lists the options of a kind. A RUN is the folder of a run, a folder that holds
runs, or a student's file in a run, such as output/digits/dml,res8/student2_best. All but curves
load the weights and run the networks on the data set of the runs.
"""

OF_KIND = """{help}.{source}

The note below the figure says what is shown; it is printed, too. Files that exist are replaced.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, draw, print the results and the files."""
    args = _parser().parse_args(argv)
    files = _files(args)
    options = _options(args)

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.curves import save_figure
        from edkd.engine.checkpoint import save_text

        draw = FIGURES[args.kind].draw

    with style():
        drawing = draw(args.runs, options, _say)
        files[0].parent.mkdir(exist_ok=True)
        for file in files:
            save_figure(drawing.figure, file, drawing.keep_width)

    # What was found, and where it is.
    for line in drawing.lines:
        _say(line)
    _say(f"note: {drawing.note}")
    if args.data:
        table = files[0].with_suffix(".csv")
        save_text(drawing.csv(), table)
        files.append(table)
    _say(f"written: {', '.join(map(str, files))}")


def _say(line: str) -> None:
    print(line, flush=True)


# The command line.


def _parser() -> ArgumentParser:
    kinds = "\n".join(f"{name:12} {figure.help}" for name, figure in FIGURES.items())
    parser = ArgumentParser(
        prog=command("figure"),
        description=DESCRIPTION.format(figure=command("figure"), kinds=kinds),
    )
    subparsers = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, figure in FIGURES.items():
        _add_kind(subparsers, name, figure)
    return parser


def _add_kind(subparsers: argparse._SubParsersAction, name: str, figure: Figure) -> None:
    source = f"\nSource: {figure.source}." if figure.source else ""
    text = figure.help[0].upper() + figure.help[1:]
    parser = subparsers.add_parser(
        name, help=figure.help, description=OF_KIND.format(help=text, source=source)
    )
    parser.add_argument("runs", nargs="+", type=given_path, metavar="RUN")
    _add_output(parser, name)
    if name != "curves":
        _add_networks(parser)
    _OPTIONS[name](parser)


def _add_output(parser: ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--output",
        action=Once,
        type=given_path,
        default=None,
        metavar="FILE",
        help=f"where to write; a suffix is the format (default: {FOLDER}/{name}.png and .pdf)",
    )
    parser.add_argument(
        "--format", nargs="+", default=[], metavar="FORMAT", help=f"some of {', '.join(FORMATS)}"
    )
    parser.add_argument(
        "--size",
        choices=tuple(WIDTHS),
        default="column",
        help="width of a column or of a page of a paper (default: column)",
    )

    # What belongs to it.
    parser.add_argument("--no-note", action="store_true", help="leave out the note in the figure")
    parser.add_argument(
        "--data", action="store_true", help="also write the numbers of the figure, as CSV"
    )


def _add_networks(parser: ArgumentParser) -> None:
    add_which(parser, "each run")

    # Images.
    parser.add_argument(
        "--images", type=positive, default=0, metavar="N", help="number of images, evenly spaced"
    )
    parser.add_argument(
        "--split",
        choices=("test", "val", "train"),
        default="test",
        help="which images; val: those that choose the best epoch; train: in the augmented views "
        "of the first epoch (default: test)",
    )
    parser.add_argument(
        "--root", action=Once, default="", help="folder of the data set (default: the run's)"
    )
    add_device(parser)


def _add_seed(parser: ArgumentParser, of: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"of {of} (default: 0)")


def _add_teacher(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--teacher-ckpt",
        action=Once,
        default="",
        metavar="FILE",
        help="weights of the teacher (default: those of the run)",
    )


def _of_curves(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--what",
        action=Once,
        default="top1",
        metavar="METRIC",
        help="top1, top5, loss (of training), lr, or a key of metrics.jsonl, such as train_loss_kd "
        "or test_loss (default: top1)",
    )


def _of_tsne(parser: ArgumentParser) -> None:
    _add_teacher(parser)
    _add_seed(parser, "the map")
    parser.add_argument(
        "--classes",
        action=Once,
        default="10",
        metavar="N|LIST",
        help="number of classes, evenly spaced, or their numbers, as 3,7,9 (default: 10)",
    )
    parser.add_argument("--teacher", action="store_true", help="show the teachers, too")


def _of_cka(parser: ArgumentParser) -> None:
    _add_teacher(parser)
    _add_seed(parser, "the batches")
    parser.add_argument(
        "--between",
        choices=("teacher", "students"),
        default="teacher",
        help="compare each student with its teacher, or the students with one another; one run "
        "alone with itself (default: teacher)",
    )


def _of_landscape(parser: ArgumentParser) -> None:
    _add_seed(parser, "the directions")
    parser.add_argument(
        "--dimensions",
        type=int,
        choices=(1, 2),
        default=2,
        help="curves along one direction, or contours in the plane of two (default: 2)",
    )

    # The grid.
    parser.add_argument(
        "--points",
        type=positive,
        default=0,
        metavar="N",
        help="points in each direction, an odd number (default: 21; in two dimensions 11)",
    )
    parser.add_argument(
        "--radius", type=float, default=1.0, help="steps to each side (default: %(default)s)"
    )


_OPTIONS: dict[str, Callable[[ArgumentParser], None]] = {
    "curves": _of_curves,
    "tsne": _of_tsne,
    "correlation": _add_teacher,
    "cka": _of_cka,
    "landscape": _of_landscape,
}
"""Adds the options of each kind."""


# What was given.


def _options(args: argparse.Namespace) -> Options:
    given = {name: value for name, value in vars(args).items() if name in Options._fields}
    options = Options(**given, note=not args.no_note)
    if not 0 <= options.seed <= _HIGHEST_SEED:
        raise UserError(f"--seed {options.seed}: give a number from 0 to {_HIGHEST_SEED}")
    if options.teacher_ckpt and not _shows_teachers(args.kind, options):
        shown = "--teacher" if args.kind == "tsne" else "--between teacher"
        raise UserError(f"--teacher-ckpt: the figure shows no teacher; add {shown}")
    return options


def _shows_teachers(kind: str, options: Options) -> bool:
    """Whether a figure that can show teachers does so."""
    if kind == "tsne":
        return options.teacher
    return kind != "cka" or options.between == "teacher"


def _files(args: argparse.Namespace) -> list[Path]:
    """The files to write, checked before anything is computed."""
    formats = [name.lower().removeprefix(".") for name in args.format]
    output = args.output.expanduser() if args.output else FOLDER / args.kind
    suffix = output.suffix.lower().removeprefix(".")
    if args.output and suffix in FORMATS:
        formats = list(dict.fromkeys([suffix, *formats]))
        output = output.with_suffix("")

    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format: {unknown('format', name, FORMATS)}")

    # Where they go.
    if args.output and not output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {output.parent}; create it")
    if not args.output and FOLDER.exists() and not FOLDER.is_dir():
        raise UserError(f"{FOLDER} is a file; give another place with --output")
    return [output.with_name(f"{output.name}.{name}") for name in formats or ("png", "pdf")]
