"""Grids as plain text, Markdown and LaTeX."""

import textwrap
from collections.abc import Sequence

from edkd.results.grid import Grid

WIDTH = 100
"""Columns of plain text."""

_LEAST_NAME = 16
"""Columns of plain text that the name of a method has at least."""

_GAP = "  "

Grids = Sequence[Grid]
Lines = Sequence[str]

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "|": r"\textbar{}",
    "†": r"$^\dagger$",
}


def as_text(grids: Grids, notes: Lines) -> str:
    """Aligned columns, and the notes as paragraphs."""
    parts = []
    for grid in grids:
        lines = [grid.title, "", *_aligned(grid), *_wrapped(grid.notes)]
        parts.append("\n".join(lines))

    parts.append("\n".join(_wrapped(notes)))
    return "\n\n".join(parts)


def as_markdown(grids: Grids, notes: Lines) -> str:
    """Tables of Markdown, and the notes as lists."""
    parts = []
    for grid in grids:
        rules = ["---"]
        rules += ["--:"] * (len(grid.header) - 1)
        lines = [_piped(grid.header), f"|{'|'.join(rules)}|"]
        lines += [_piped(row) for row in grid.rows]

        parts.append(f"**{grid.title}**")
        parts.append("\n".join(lines))
        if grid.notes:
            parts.append(_listed(grid.notes))

    parts.append(_listed(notes))
    return "\n\n".join(parts)


def as_latex(grids: Grids, notes: Lines) -> str:
    """A table environment for each grid, for the package booktabs; the notes follow the last."""
    parts = ["% needs \\usepackage{booktabs}"]
    for grid in grids:
        is_last = grid is grids[-1]
        below = [*grid.notes, *notes] if is_last else grid.notes
        parts.append(_environment(grid, below))
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Text for LaTeX."""
    arrows = text.split("->")
    parts = []
    for part in arrows:
        letters = [_LATEX.get(letter, letter) for letter in part]
        parts.append("".join(letters))
    return r"$\rightarrow$".join(parts)


# Plain text.


def _aligned(grid: Grid) -> list[str]:
    """The lines of a grid; names that are too long continue on the next line."""
    widths = _widths(grid)
    rule = "-" * (sum(widths) + len(_GAP) * (len(widths) - 1))

    header, *rows = [_row_lines(row, widths) for row in [grid.header, *grid.rows]]
    lines = [*header, rule]
    for row in rows:
        lines += row
    return lines


def _widths(grid: Grid) -> list[int]:
    """The width of each column; the first one gets what is left of WIDTH."""
    columns = zip(grid.header, *grid.rows, strict=True)
    first, *others = [max(map(len, column)) for column in columns]
    left = WIDTH - sum(others) - len(_GAP) * len(others)
    return [min(first, max(_LEAST_NAME, left)), *others]


def _row_lines(row: Lines, widths: Sequence[int]) -> list[str]:
    """A row, and lines for the rest of its name."""
    first, *others = widths
    name, *continued = textwrap.wrap(row[0], first, subsequent_indent="  ")
    cells = [name.ljust(first)]
    for text, width in zip(row[1:], others, strict=True):
        cells.append(text.rjust(width))
    return [_GAP.join(cells).rstrip(), *continued]


def _wrapped(notes: Lines) -> list[str]:
    """Notes as paragraphs."""
    lines = []
    for note in notes:
        lines += textwrap.wrap(
            f"- {note}",
            WIDTH,
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    return lines


# Markdown.


def _piped(cells: Lines) -> str:
    texts = [cell.strip().replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(texts)} |"


def _listed(notes: Lines) -> str:
    return "\n".join(f"- {note}" for note in notes)


# LaTeX.


def _environment(grid: Grid, notes: Lines) -> str:
    """A table environment with notes below it."""
    columns = "l" + "r" * (len(grid.header) - 1)
    rows = [_latex_row(row) for row in grid.rows]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(grid.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(grid.header),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
    ]

    if notes:
        lines.append(r"\par\smallskip\footnotesize\raggedright")
    for note in notes:
        sentence = f"{note[0].upper()}{note[1:]}."
        lines.append(rf"{escaped(sentence)}\par")
    lines.append(r"\end{table}")
    return "\n".join(lines)


def _latex_cell(cell: str) -> str:
    """A cell; a number with a sign is set as mathematics, which has a minus."""
    is_signed = cell[:1] in ("+", "-") and cell[1:2].isdigit()
    return f"${cell}$" if is_signed else escaped(cell)


def _latex_row(cells: Lines) -> str:
    """A row; a first cell that is indented stays so."""
    texts = [_latex_cell(cell.strip()) for cell in cells]
    if cells[0].startswith(" "):
        texts[0] = rf"\quad {texts[0]}"
    joined = " & ".join(texts)
    return rf"{joined} \\"
