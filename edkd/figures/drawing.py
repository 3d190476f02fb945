"""What all figures share: their options, style, panels, notes and files."""

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from edkd.curves import plain
from edkd.errors import UserError

WIDTHS = {"column": 3.5, "page": 7.16}
"""Inches: a column, and a page, of a paper with two columns."""

FORMATS = ("png", "pdf", "svg")

TEXT = 7
"""Points."""

SMALL = 6
"""Points, for numbers in cells and for the note."""

_PER_ROW = {"column": 2, "page": 4}
"""Panels side by side."""

_NOTE_CHARACTER = 0.047
"""Inches of width that a character of the note takes, on average."""

_STYLE: Any = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "legend.fontsize": TEXT,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "axes.titlepad": 4,
    "axes.labelpad": 2,
    "svg.hashsalt": "edkd",
}


class Options(NamedTuple):
    """What the user chooses; each figure reads those that it needs."""

    size: str = "column"
    """A key of WIDTHS."""
    note: bool = True
    """Whether the note stands in the figure."""

    # Networks and images.
    which: str = ""
    """Weights of each run, see `open_run`."""
    teacher_ckpt: str = ""
    """Weights of the teacher; "": those of each run."""
    root: str = ""
    """Folder of the data set; "": that of the run."""
    device: str = "auto"
    split: str = "test"
    images: int = 0
    """0: the number that suits the figure."""
    seed: int = 0

    # curves
    what: str = "top1"
    # tsne
    classes: str = "10"
    teacher: bool = False
    # cka
    between: str = "teacher"
    # landscape
    dimensions: int = 2
    points: int = 0
    """In each direction; 0: 11 in two dimensions, 21 in one."""
    radius: float = 1.0


class Drawing(NamedTuple):
    """A figure and what belongs to it."""

    figure: Any
    """Of matplotlib."""
    note: str
    """What is shown, as for a caption."""
    header: Sequence[str]
    """Names of the columns of `rows`."""
    rows: Sequence[Sequence[Any]]
    """The numbers behind the figure."""
    lines: Sequence[str] = ()
    """Results for the user."""
    keep_width: bool = True
    """See `save_figure`."""

    def csv(self) -> str:
        """The numbers as text, a row each."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(self.rows)
        return text.getvalue()


class Legend(NamedTuple):
    """One legend for all panels."""

    handles: Sequence[Any]
    names: Sequence[str]
    length: float = 2.2
    """Of a handle, as a multiple of the size of the text."""
    scale: float = 1.0
    """Size of the markers, as a multiple of those in the figure."""


@contextmanager
def style() -> Iterator[None]:
    """The context in which a figure is made and saved.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("a figure needs matplotlib: pip install matplotlib") from None
    with matplotlib.rc_context(_STYLE):
        yield


def panels(number: int, size: str, aspect: float) -> tuple[Any, list[Any]]:
    """A figure with axes side by side, in as many rows as they need.

    Args:
        number: of the axes, at least 1.
        size: a key of WIDTHS.
        aspect: height of an axes over its width, with its texts.

    Returns:
        The figure, and its axes.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = panels_per_row(number, size)
    rows = math.ceil(number / columns)
    width = WIDTHS[size]

    # One panel alone does not fill a page.
    widest = min(width / columns, 3.5)
    height = rows * widest * aspect
    layout = ConstrainedLayoutEngine(
        compress=True,
        w_pad=0.03,
        h_pad=0.03,
        wspace=0.03,
        hspace=0.04,
    )
    figure = Figure(figsize=(min(width, columns * widest), height), layout=layout)

    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def panels_per_row(number: int, size: str) -> int:
    """How many of a number of panels stand side by side on a size of WIDTHS."""
    return min(number, _PER_ROW[size])


def inches_wide(axes: Any) -> float:
    """The width of axes, as they are laid out now."""
    return axes.get_position().width * axes.figure.get_figwidth()


def finish(figure: Any, note: str, options: Options, legend: Legend | None = None) -> None:
    """Fix the layout, and put a legend and a note below what was drawn.

    They stand outside the figure's own area, to which `save_figure` adds them.

    Args:
        figure: from `panels`.
        note: what is shown.
        options: whether the note is wanted.
        legend: of all panels.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    width, height = figure.get_size_inches()
    gap = 0.06

    if legend:
        _add_legend(figure, legend, (figure.get_tightbbox().y0 - gap) / height)

    if options.note:
        wrapped = textwrap.wrap(plain(note), int((width - 0.1) / _NOTE_CHARACTER))
        figure.text(
            0.05 / width,
            (figure.get_tightbbox().y0 - gap) / height,
            "\n".join(wrapped),
            va="top",
            fontsize=SMALL,
            color="0.25",
            linespacing=1.15,
        )


def _add_legend(figure: Any, legend: Legend, top: float) -> None:
    """Put a legend at a height, in as few lines as the width of the figure allows."""
    number = len(legend.names)
    for lines in range(1, number + 1):
        box = figure.legend(
            legend.handles,
            [plain(name) for name in legend.names],
            loc="upper center",
            bbox_to_anchor=(0.5, top),
            ncols=math.ceil(number / lines),
            frameon=False,
            borderaxespad=0,
            handlelength=legend.length,
            handletextpad=0.4,
            columnspacing=1.0,
            labelspacing=0.25,
            markerscale=legend.scale,
        )
        figure.draw_without_rendering()
        inches = box.get_window_extent().width / figure.dpi
        if inches <= figure.get_figwidth() or lines == number:
            return
        box.remove()


def shortened(name: str, most: int) -> str:
    """A name of at most so many characters, its middle left out; runs differ at their ends."""
    if len(name) <= most:
        return plain(name)
    head = (most - 3) // 2
    tail = most - 3 - head
    return plain(f"{name[:head]}...{name[-tail:]}")


def titled(name: str, width: float) -> str:
    """A name for a title, in at most two lines of a width in inches."""
    room = max(12, int(width / 0.058))
    lines = textwrap.wrap(name.replace(",", ", "), room, break_on_hyphens=False) or [" "]
    if len(lines) > 2:
        lines = [lines[0], shortened(" ".join(lines[1:]), room)]
    return "\n".join(plain(line) for line in lines)


def add_color_bar(
    figure: Any, image: Any, all_axes: Sequence[Any], label: str, form: Any = "%g"
) -> Any:
    """Add one scale of colours for all panels, at their right, and return it.

    Args:
        form: of the numbers; "%g" shows all digits of a tick. Or a function of a number and its
            place.
    """
    bar = figure.colorbar(image, ax=all_axes, aspect=25, pad=0.02, format=form)
    bar.set_label(label)
    bar.outline.set_linewidth(0.6)
    return bar


def frame(axes: Any) -> None:
    """Leave out the upper and the right border."""
    axes.spines[["top", "right"]].set_visible(False)
