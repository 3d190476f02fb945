"""What a section consists of: charts, tables, notes, images. The template renders each kind."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

_COLORS = 7
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_DASH_ARRAYS = ("none", "7 4", "2 3", "7 3 2 3", "11 4", "11 3 2 3")

_SYMBOLS = {
    "circle": "M12 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M12.5 2.5h7v7h-7z",
    "triangle-up": "M16 1.5l4.5 8h-9z",
    "diamond": "M16 1l5 5-5 5-5-5z",
    "triangle-down": "M16 10.5l4.5-8h-9z",
    "x": "M13 1.5l3 3 3-3 1.5 1.5-3 3 3 3-1.5 1.5-3-3-3 3-1.5-1.5 3-3-3-3z",
    "cross": "M14.5 1h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "star": "M16 1l1.5 3.3 3.5.4-2.6 2.4.7 3.5-3.1-1.7-3.1 1.7.7-3.5-2.6-2.4 3.5-.4z",
    "triangle-left": "M11.5 6l8-4.5v9z",
    "triangle-right": "M20.5 6l-8-4.5v9z",
}
"""Markers of plotly, and their outlines in a box of 32 by 12 for the samples beside names."""


class Series(NamedTuple):
    """How a row of the table is drawn in every chart of its data set.

    Colours, dashes and symbols repeat with different periods, so that 210 series differ.
    """

    number: int

    @property
    def color(self) -> str:
        """A custom property of the style sheet, which differs in the light and the dark theme."""
        return f"var(--series-{self.number % _COLORS})"

    @property
    def dash(self) -> str:
        """A dash of plotly."""
        return _DASHES[self.number % len(_DASHES)]

    @property
    def symbol(self) -> str:
        """A marker of plotly."""
        return list(_SYMBOLS)[self.number % len(_SYMBOLS)]

    @property
    def dash_array(self) -> str:
        """The dash, for SVG."""
        return _DASH_ARRAYS[self.number % len(_DASHES)]

    @property
    def symbol_path(self) -> str:
        """The outline of the marker, for SVG."""
        return _SYMBOLS[self.symbol]


class Cell(NamedTuple):
    """A cell of a table.

    Args:
        text: shown.
        is_marked: highlighted, as it differs from most others.
        series: draws the sample of a row's curve before the text.
    """

    text: str
    is_marked: bool = False
    series: Series | None = None


class Column(NamedTuple):
    """The head of a column; numbers are aligned at the right."""

    text: str
    is_number: bool = True


class Table(NamedTuple):
    """A table, whose first column names the rows."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    kind: str = "table"


class Chart(NamedTuple):
    """A chart of plotly, with its text alternative.

    Args:
        key: unique within a section.
        title: what is drawn.
        summary: a sentence with the result, for those who do not see the chart.
        traces: of plotly; `meta` is the number of the row that a trace belongs to.
        layout: of plotly, on top of that of the page.
        table: the same data.
        height: pixels.
        min_width: pixels; a narrower page scrolls the chart within its box.
        has_own_series: its traces are no rows, which a reader can hide.
    """

    key: str
    title: str
    summary: str
    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    table: Table
    height: int = 320
    min_width: int = 0
    has_own_series: bool = False
    kind: str = "chart"


class Charts(NamedTuple):
    """Charts side by side where the page is wide enough."""

    charts: Sequence[Chart]
    kind: str = "charts"


class Note(NamedTuple):
    """A paragraph; with `is_warning`, one that limits what the figures show."""

    text: str
    is_warning: bool = False
    kind: str = "note"


class Lines(NamedTuple):
    """A list of short lines, as the notes of a table."""

    texts: Sequence[str]
    kind: str = "lines"


class Tile(NamedTuple):
    """A figure in large type."""

    label: str
    value: str
    detail: str


class Tiles(NamedTuple):
    """The main figures."""

    tiles: Sequence[Tile]
    kind: str = "tiles"


class LegendEntry(NamedTuple):
    """A row that can be shown or hidden."""

    series: Series
    name: str


class Legend(NamedTuple):
    """A check box for each row, for all charts of the data set; `is_fixed`: names alone."""

    entries: Sequence[LegendEntry]
    is_fixed: bool = False
    kind: str = "legend"


class Image(NamedTuple):
    """A picture, with its text alternative and two lines below it.

    Args:
        is_small: enlarged with visible pixels.
    """

    uri: str
    alt: str
    title: str
    detail: str
    is_small: bool


class Images(NamedTuple):
    """Pictures in a grid."""

    caption: str
    images: Sequence[Image]
    kind: str = "images"


class Code(NamedTuple):
    """Text in a fixed width, as a command or a configuration."""

    text: str
    label: str
    kind: str = "code"


class Details(NamedTuple):
    """Blocks behind a line that opens them."""

    summary: str
    blocks: "Sequence[Block]"
    is_open: bool = False
    series: Series | None = None
    kind: str = "details"


Block: TypeAlias = Chart | Charts | Code | Details | Images | Legend | Lines | Note | Table | Tiles


class Section(NamedTuple):
    """A part of the page with a title.

    Args:
        key: unique within a chapter.
        lead: what the section shows, in a sentence; "" for none.
    """

    key: str
    title: str
    lead: str
    blocks: Sequence[Block]


class Chapter(NamedTuple):
    """Sections about one data set, or about all runs.

    Args:
        key: unique on the page, as "data1".
    """

    key: str
    title: str
    lead: str
    sections: Sequence[Section]


def text_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain texts, whose first column names the rows and whose others are numbers."""
    heads = [Column(text, is_number=i > 0) for i, text in enumerate(columns)]
    cells = [[Cell(text) for text in row] for row in rows]
    return Table(caption, heads, cells)
