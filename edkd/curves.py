"""Curves over the epochs, in a figure for a column of a paper; drawn by matplotlib."""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edkd.errors import UserError, warn
from edkd.whole_files import replace_file

_WIDTH = 3.5
"""Inches: a column of a paper with two."""

_HEIGHT = 2.0
"""Inches of the axes; more where many values stand at their right."""

_DPI = 300

_LEFT = 0.5
"""Inches left of the axes."""

_BELOW = 0.42
"""Inches between the axes and the legend."""

_TEXT = 7
"""Points. Titles have one more."""

_LINE = 0.12
"""Inches of height that a line of text takes."""

_CHARACTER = 0.054
"""Inches of width that a character takes, on average."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito: told apart with any kind of colour vision."""

_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")

_MARKERS_PER_CURVE = 8

_NAME = 52
"""Characters of a line of the legend."""

_LINES_OF_A_NAME = 6
"""Lines of the legend that a name takes at most."""

_DODGE = 0.06
"""Share of the axes between the points of runs of one epoch."""


class Curve(NamedTuple):
    """A line of a figure.

    Args:
        name: for the legend.
        values: one per epoch, from the first.
        deviations: half the height of the band at each epoch; empty: no band.
        end: text at the end of the line.
    """

    name: str
    values: Sequence[float]
    deviations: Sequence[float] = ()
    end: str = ""


def figure_of(
    curves: Sequence[Curve],
    title: str,
    ylabel: str,
    note: str = "",
    limits: tuple[float, float] | None = None,
    width: float = _WIDTH,
) -> Any:
    """A matplotlib Figure of the curves, for `save_figure`.

    Curves differ in colour, marker and line style; a curve of one epoch is a point. The legend is
    below the axes, so that no name covers a curve.

    Args:
        curves: at least one.
        note: lines above the legend.
        limits: lowest and highest value that is possible, as (0, 100).
        width: of the figure, in inches; the default is that of a column.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install matplotlib") from None

    # The axes get a fixed size, so that the places of the texts beside them are known.
    longest = max(len(curve.end) for curve in curves)
    right = _CHARACTER * longest + 0.3
    height = max(_HEIGHT, _LINE * len(curves))
    figure = Figure(figsize=(width, height), dpi=_DPI)
    axes = figure.add_axes((_LEFT / width, 0, 1 - (_LEFT + right) / width, 1))

    # The curves, and their last values beside the axes.
    lines = [_draw(axes, i, curve, _first_epoch(i, curves)) for i, curve in enumerate(curves)]
    _set_limits(axes, curves, limits)
    _write_ends(axes, curves, lines, height)

    # Texts.
    axes.set_title(plain(title), fontsize=_TEXT + 1)
    axes.set_xlabel("epoch", fontsize=_TEXT + 1)
    axes.set_ylabel(ylabel, fontsize=_TEXT + 1)
    axes.tick_params(labelsize=_TEXT)
    axes.grid(alpha=0.3, linewidth=0.5)
    _add_legend(axes, curves, lines, note)
    return figure


def save_figure(figure: Any, picture: Path, keep_width: bool = False) -> None:
    """Write a figure; the suffix of the file is the format (.png, .svg, .pdf).

    PDF files have their fonts as TrueType (type 42), which journals require. A figure that is saved
    again has the same bytes. The file is replaced as a whole.

    Args:
        keep_width: cut off empty borders above and below only, so that the width is exact.

    Raises:
        UserError: matplotlib does not support the format, or cannot write the file.
    """
    if not picture.suffix:  # matplotlib would write another file, with .png
        raise UserError(f"the picture {picture} has no format; end its name in .png, .svg or .pdf")
    try:
        content, problems = _rendered(figure, picture.suffix[1:].lower(), keep_width)
        replace_file(picture, content)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot write the picture {picture}: {error}") from None
    if problems:
        warn(f"{picture}: {problems[0]}; boxes stand in its place")


def _rendered(figure: Any, suffix: str, keep_width: bool) -> tuple[bytes, list[str]]:
    """The content of a file, and what matplotlib cannot draw."""
    from matplotlib import rc_context

    box: Any = _without_borders(figure) if keep_width else "tight"
    options: dict[str, Any] = {"bbox_inches": box, "pad_inches": 0 if keep_width else 0.03}
    date = {"pdf": "CreationDate", "svg": "Date"}.get(suffix)
    if date:
        options["metadata"] = {date: None}

    file = io.BytesIO()
    fonts: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "edkd"}
    with warnings.catch_warnings(record=True) as caught, rc_context(fonts):
        warnings.filterwarnings("always", message="Glyph")
        figure.savefig(file, format=suffix, dpi=_DPI, **options)
    return file.getvalue(), [str(each.message) for each in caught]


def _without_borders(figure: Any) -> Any:
    """The box of a figure of its own width, and of the height of what is drawn."""
    from matplotlib.transforms import Bbox

    drawn = figure.get_tightbbox()
    return Bbox.from_extents(0, drawn.y0 - 0.03, figure.get_figwidth(), drawn.y1 + 0.03)


def spread_out(wanted: Sequence[float], gap: float, high: float) -> list[float]:
    """Positions close to the wanted ones, at least `gap` apart, within [0, high] if they fit.

    Args:
        wanted: ascending.
    """
    # Neighbours that would overlap form a group, which is centred at their mean.
    groups: list[list[float]] = []
    for position in wanted:
        group = [position]
        while groups and _overlap(groups[-1], group, gap, high):
            group = groups.pop() + group
        groups.append(group)

    return [place for group in groups for place in _places(group, gap, high)]


def _overlap(lower: Sequence[float], upper: Sequence[float], gap: float, high: float) -> bool:
    return _places(upper, gap, high)[0] < _places(lower, gap, high)[-1] + gap


def _places(group: Sequence[float], gap: float, high: float) -> list[float]:
    """The positions of the members of a group."""
    extent = gap * (len(group) - 1)
    lowest = sum(group) / len(group) - extent / 2
    lowest = max(0.0, min(lowest, high - extent))
    return [lowest + gap * i for i in range(len(group))]


def _first_epoch(number: int, curves: Sequence[Curve]) -> float:
    """Where a curve begins: at 1, but points of runs of one epoch stand side by side."""
    if any(len(curve.values) > 1 for curve in curves):
        return 1
    distance = min(_DODGE, 0.9 / len(curves))
    return 1 + distance * (number - (len(curves) - 1) / 2)


def _draw(axes: Any, number: int, curve: Curve, first: float) -> Any:
    """Add a curve and its band; return the line."""
    count = len(curve.values)
    epochs = [first + i for i in range(count)]
    color = COLORS[number % len(COLORS)]
    style = _STYLES[number // len(COLORS) % len(_STYLES)]
    step = max(1, count // _MARKERS_PER_CURVE)

    (line,) = axes.plot(
        epochs,
        curve.values,
        color=color,
        linestyle=style if count > 1 else "none",
        linewidth=1.1,
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=3,
        markevery=(number % step, step),
        clip_on=False,
        zorder=3,
    )
    if not curve.deviations:
        return line

    pairs = list(zip(curve.values, curve.deviations, strict=True))
    low = [value - deviation for value, deviation in pairs]
    high = [value + deviation for value, deviation in pairs]
    if count == 1:
        axes.vlines(epochs, low, high, color=color, linewidth=1.1, alpha=0.6)
    else:
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    return line


def _set_limits(axes: Any, curves: Sequence[Curve], limits: tuple[float, float] | None) -> None:
    """Show every epoch, with ticks at whole numbers only, and no value that is impossible."""
    from matplotlib.ticker import MaxNLocator

    epochs = max(len(curve.values) for curve in curves)
    pad = max(0.5 / epochs, 0.02 * epochs)
    axes.set_xlim(1 - min(0.5, pad), epochs + pad)
    whole = MaxNLocator(integer=True, min_n_ticks=1, nbins=7, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_locator(whole)

    if limits:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, limits[0]), min(high, limits[1]))


def _write_ends(axes: Any, curves: Sequence[Curve], lines: Sequence[Any], height: float) -> None:
    """Write the texts at the right of the axes, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    rank = sorted(range(len(curves)), key=lambda i: curves[i].values[-1])
    wanted = [height * (curves[i].values[-1] - low) / (high - low) for i in rank]

    for i, place in zip(rank, spread_out(wanted, _LINE, height), strict=True):
        if curves[i].end:
            _write_end(axes, curves[i].end, lines[i], place / height)


def _write_end(axes: Any, text: str, line: Any, place: float) -> None:
    """Write a text at a height of the axes, with the curve's marker and a line to its end."""
    style = {"color": line.get_color(), "marker": line.get_marker(), "markersize": 3}
    inch = 1 / (axes.get_position().width * axes.figure.get_figwidth())
    axes.plot(1 + 0.18 * inch, place, transform=axes.transAxes, clip_on=False, **style)

    end = (line.get_xdata()[-1], line.get_ydata()[-1])
    pointer = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.5, "alpha": 0.6}
    axes.annotate(
        "",
        xy=end,
        xytext=(1 + 0.16 * inch, place),
        textcoords="axes fraction",
        annotation_clip=False,
        arrowprops=pointer | {"shrinkA": 0, "shrinkB": 0},
    )
    axes.annotate(
        text,
        xy=(1 + 0.25 * inch, place),
        xycoords="axes fraction",
        annotation_clip=False,
        va="center_baseline",
        fontsize=_TEXT,
    )


def _add_legend(axes: Any, curves: Sequence[Curve], lines: Sequence[Any], note: str) -> None:
    """Put names and note below the axes, in as many columns as the names leave room for."""
    names = [_wrapped(curve.name) for curve in curves]
    longest = max(len(line) for name in names for line in name.split("\n"))
    width, height = axes.figure.get_size_inches()
    columns = max(1, min(len(curves), int(width / (_CHARACTER * longest + 0.45))))

    legend = axes.legend(
        lines,
        [f"curve {number}" for number in range(1, len(curves) + 1)],
        title=note,
        loc="upper left",
        bbox_to_anchor=(-_LEFT / axes.get_position().width / width, -_BELOW / height),
        borderaxespad=0,
        frameon=False,
        ncols=columns,
        fontsize=_TEXT,
        title_fontsize=_TEXT,
        alignment="left",
        handlelength=2.5,
        columnspacing=1.2,
        labelspacing=0.3,
    )

    # Set afterwards: in labels, matplotlib gives a meaning to "$", and to "_" at the start.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _wrapped(name: str) -> str:
    """A name in lines, broken after commas and spaces; the middle of a very long one is left out.

    Runs often differ in the last part of their names.
    """
    name = _printable(name)
    most = _NAME * (_LINES_OF_A_NAME - 1)
    if len(name) > most:
        half = most // 2
        name = f"{name[:half]} ... {name[-half:]}"

    lines = [""]
    for part in re.findall(rf"[^, ]{{1,{_NAME - 1}}}[, ]?|[, ]", name):
        if len(lines[-1]) + len(part) > _NAME:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines) or " "


def _printable(text: str) -> str:
    """Text that a font can show: names of files can hold line ends, and bytes of no encoding."""
    return "".join(character if character.isprintable() else "?" for character in text)


def plain(text: str) -> str:
    """Text for a title or a label, in which "$" has no meaning."""
    return _printable(text).replace("$", r"\$")
