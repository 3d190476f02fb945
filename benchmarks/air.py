"""How dense the code is: expression nodes per code line, long lines, blank lines inside functions.

python benchmarks/air.py [FILE_OR_FOLDER ...] [--all]

Targets for edkd/: every file at most 4.5 expression nodes per code line and 3.8 over all, no line
over 100 columns, at least 6 % blank lines inside functions longer than 15 lines. Exit code 1 where
one is missed.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]

MAX_NODES_OF_A_FILE = 4.5
MAX_NODES = 3.8
MAX_COLUMNS = 100
MIN_BLANK = 0.06
LONG_FUNCTION = 15


class Air(NamedTuple):
    """Counts of one file, or of several together."""

    nodes: int
    """Expression nodes of the syntax tree."""
    code_lines: int
    """Lines that are neither blank nor a comment; docstrings count."""
    long_lines: int
    comments: int
    blank: int
    """Blank lines inside functions longer than 15 lines."""
    inside: int
    """Lines of those functions."""

    @property
    def density(self) -> float:
        """Expression nodes per code line."""
        return self.nodes / max(self.code_lines, 1)

    @property
    def blank_share(self) -> float:
        """Share of blank lines inside long functions; 1 where there is no such function."""
        return self.blank / self.inside if self.inside else 1.0


def count(text: str) -> Air:
    """Count one file's text."""
    tree = ast.parse(text)
    lines = [line.strip() for line in text.splitlines()]
    comments = sum(line.startswith("#") for line in lines)

    blank = inside = 0
    for start, end in _long_functions(tree):
        blank += lines[start - 1 : end].count("")
        inside += end - start + 1

    return Air(
        nodes=sum(isinstance(node, ast.expr) for node in ast.walk(tree)),
        code_lines=len(lines) - lines.count("") - comments,
        long_lines=sum(len(line) > MAX_COLUMNS for line in text.splitlines()),
        comments=comments,
        blank=blank,
        inside=inside,
    )


def total(counts: Sequence[Air]) -> Air:
    """The counts of several files together."""
    return Air(*(sum(column) for column in zip(*counts, strict=True)))


def problems(name: str, air: Air, limit: float = MAX_NODES_OF_A_FILE) -> list[str]:
    """The targets that a file misses."""
    found = []
    if air.density > limit:
        found.append(f"{name}: {air.density:.2f} expression nodes per code line, limit {limit}")
    if air.long_lines:
        found.append(f"{name}: {air.long_lines} lines over {MAX_COLUMNS} columns")
    if air.blank_share < MIN_BLANK:
        share = f"{100 * air.blank_share:.1f} %"
        found.append(f"{name}: {share} blank lines inside long functions, at least 6 %")
    return found


def _long_functions(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """First and last line of each function longer than 15 lines, nested ones aside."""
    nested: set[ast.AST] = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node in nested:
            continue
        nested.update(ast.walk(node))
        end = node.end_lineno or node.lineno
        if end - node.lineno + 1 > LONG_FUNCTION:
            yield node.lineno, end


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each file that misses a target, and the sum; return the exit code."""
    parser = argparse.ArgumentParser(description="How dense the code is.")
    parser.add_argument("paths", nargs="*", type=Path, help="default: edkd/")
    parser.add_argument("--all", action="store_true", help="a line for every file")
    args = parser.parse_args(argv)

    files: list[Path] = []
    for path in args.paths or [CHECKOUT / "edkd"]:
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]

    counts = {str(path): count(path.read_text(encoding="utf-8")) for path in files}
    missed = [line for name, air in counts.items() for line in problems(name, air)]
    whole = total(list(counts.values()))
    missed += problems("all together", whole, MAX_NODES)

    if args.all:
        for name, air in counts.items():
            blank = f"{100 * air.blank_share:5.1f} %"
            print(f"{air.density:5.2f}  {blank} blank  {air.long_lines:3d} long lines  {name}")
    for line in missed:
        print(line)
    print(
        f"{len(files)} files: {whole.density:.2f} expression nodes per code line, "
        f"{100 * whole.blank_share:.1f} % blank lines inside long functions, "
        f"{100 * whole.comments / max(whole.code_lines, 1):.1f} comments per 100 code lines, "
        f"{whole.long_lines} lines over {MAX_COLUMNS} columns"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
