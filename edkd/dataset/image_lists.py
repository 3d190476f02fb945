"""Lists of images and their labels: CSV and parquet files with columns path, label and split."""

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edkd.dataset.listing import Listing, combined, in_threads, portable, printable
from edkd.dataset.parts import TEST, TRAIN, VAL, Parts, split_parts
from edkd.errors import UserError

PATH = "path"
LABEL = "label"
SPLIT = "split"

_VAL = VAL[0]
_SPLITS = {TRAIN: TRAIN, TEST: TEST} | dict.fromkeys(VAL, _VAL)
"""Texts in the column `split` -> the part."""

_FORM = f"it needs the columns {PATH} and {LABEL}, and may have {SPLIT} (train, val or test)"
_PARQUET = (".parquet", ".pq")
_DELIMITERS = ",;\t"
_INTEGER = re.compile(r"[+-]?\d+")

_Fields = Mapping[str, Any]
"""The values of a row, by column."""

_Records = Iterator[tuple[str, _Fields]]
"""Rows with their places, for messages: "line 7"."""

_Rows = Sequence["Row"]


class Row(NamedTuple):
    """An image of a list."""

    place: str
    """For messages."""
    path: str
    """As written."""
    label: str
    part: str
    """"train", "val", "test", or "" where the list has no column `split`."""
    size: int = -1
    """Of the file, in bytes; -1 before it is known."""


def read_list(file: Path, root: str, fraction: float, seed: int) -> Parts:
    """The images of a list, by its column `split`; without it, a stratified test set is taken.

    Labels are names, or integers, which are ordered as numbers. The classes are those of the
    training images. Where `split` has val and test, val chooses the best epoch.

    Args:
        file: CSV (comma, semicolon or tab) or, by its ending, parquet.
        root: folder to which paths are relative; "": that of the list.
        fraction: of the images of each class for a test set without a column `split`.
        seed: of that choice.

    Raises:
        UserError: the list or an image is missing, or a row is not usable; the message names it.
    """
    if not file.is_file():
        raise _error(file, f"there is no such file; {_FORM}")

    is_parquet = file.suffix.lower() in _PARQUET
    records = _parquet(file) if is_parquet else _csv(file)
    rows = [_row(file, place, fields) for place, fields in records]
    if not rows:
        raise _error(file, "it has no rows")

    base = Path(root).expanduser() if root else file.parent
    _check_repeated(file, base, rows)
    rows = _measured(file, base, rows)
    return _parts(file, base, rows, fraction, seed)


def _error(file: Path, problem: str, place: str = "") -> UserError:
    """An error that names the list, and the row if there is one."""
    where = f"{file}, {place}" if place else str(file)
    return UserError(f"DATASET.LIST: {where}: {problem}")


# Reading.


def _csv(file: Path) -> _Records:
    """The rows of a CSV file; the header decides the delimiter."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            delimiter = max(_DELIMITERS, key=header.count)
            (names,) = csv.reader([header], delimiter=delimiter)
            columns = _columns(file, names)

            reader = csv.reader(stream, delimiter=delimiter)
            for values in reader:
                if not any(values):
                    continue
                place = f"line {reader.line_num + 1}"
                _check_length(file, place, names, values)

                values += [""] * len(names)  # for those that a short row lacks
                fields = {name: values[number] for name, number in columns.items()}
                yield place, fields
    except UnicodeDecodeError:
        raise _error(file, "it is not UTF-8 text; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise _error(file, f"it is no CSV file ({error}); save it as CSV again") from None


def _check_length(file: Path, place: str, names: Sequence[str], values: Sequence[str]) -> None:
    """Raise UserError for a row with more values than columns."""
    if any(values[len(names) :]):
        problem = (
            f"it has {len(values)} values for {len(names)} columns; put a value that contains the "
            "delimiter in double quotes"
        )
        raise _error(file, problem, place)


def _parquet(file: Path) -> _Records:
    """The rows of a parquet file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise _error(file, "it needs the package pyarrow: pip install 'edkd[tables]'") from None

    try:
        names = parquet.read_schema(file).names
        columns = _columns(file, names)
        chosen = [names[number] for number in columns.values()]
        table = parquet.read_table(file, columns=chosen)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise _error(file, f"it is no parquet file ({reason}); save it again") from None

    values = [table.column(name).to_pylist() for name in chosen]
    for number, row in enumerate(zip(*values, strict=True), 1):
        fields = zip(columns, row, strict=True)
        yield f"row {number}", dict(fields)


def _columns(file: Path, names: Sequence[str]) -> dict[str, int]:
    """The numbers of the columns that are read, by name; UserError where one is absent."""
    lower = [name.strip().lower() for name in names]
    for name in (PATH, LABEL):
        if name not in lower:
            found = ", ".join(map(printable, names)) or "none"
            raise _error(file, f"it has no column {name} (columns: {found}); {_FORM}")

    wanted = [name for name in (PATH, LABEL, SPLIT) if name in lower]
    return {name: lower.index(name) for name in wanted}


def _row(file: Path, place: str, fields: _Fields) -> Row:
    """A row with a path, a label and a known part; UserError for others."""
    texts = {name: _text(value) for name, value in fields.items()}
    for name in (PATH, LABEL):
        if not texts[name]:
            raise _error(file, f"the {name} is empty; fill it in, or remove the row", place)

    path, label, *split = texts.values()
    if not split:
        return Row(place, path, label, "")

    part = _SPLITS.get(split[0].lower())
    if part is None:
        raise _error(file, f"the split is {split[0]!r}, not train, val or test", place)
    return Row(place, path, label, part)


def _text(value: Any) -> str:
    """A value without blanks around it; "" for a missing one."""
    return "" if value is None else str(value).strip()


# Checks.


def _check_repeated(file: Path, base: Path, rows: _Rows) -> None:
    """Raise UserError for an image that is listed twice: it could be in two parts."""
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(os.path.normpath(base / row.path), row)
        if other is not row:
            path = printable(row.path)
            problem = f"{path} is in {other.place}, too; keep one of the rows"
            raise _error(file, problem, row.place)


def _measured(file: Path, base: Path, rows: _Rows) -> list[Row]:
    """The rows with the sizes of their files; UserError where one is missing."""
    sizes = in_threads(lambda row: _size(base / row.path), rows)
    pairs = zip(rows, sizes, strict=True)
    measured = [row._replace(size=size) for row, size in pairs]

    missing = [row for row in measured if row.size < 0]
    if missing:
        first, *others = missing
        more = f", and {len(others)} more are missing" if others else ""
        raise _error(
            file,
            f"no file {printable(first.path)} in {base}{more}; correct the paths, or set "
            "DATASET.ROOT to the folder that they begin in",
            first.place,
        )
    return measured


def _size(path: Path) -> int:
    """In bytes; -1 where there is no such file."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:  # as for a name that is too long
        return -1


# Parts.


def _parts(file: Path, base: Path, rows: _Rows, fraction: float, seed: int) -> Parts:
    """The rows by their parts; see `read_list`."""
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(row.part or TRAIN, []).append(row)
    if TRAIN not in by_part:
        raise _error(file, f"it has no row with the {SPLIT} {TRAIN}")

    classes = _classes(row.label for row in by_part[TRAIN])
    _check_labels(file, rows, set(classes))
    listed = {part: _listing(file, base, own, classes) for part, own in by_part.items()}

    train = listed.pop(TRAIN)
    if not listed:
        return split_parts(train, fraction, seed)
    if TEST not in listed:
        return Parts(train, None, listed[_VAL])
    return Parts(train, listed.get(_VAL), listed[TEST])


def _listing(file: Path, base: Path, rows: _Rows, classes: list[str]) -> Listing:
    """The images of a part."""
    numbers = {name: number for number, name in enumerate(classes)}
    samples: list[tuple[str, int]] = []
    texts: list[str] = []
    for row in rows:
        samples.append((str(base / row.path), numbers[row.label]))
        texts += [row.path, row.label]

    names = portable(texts)
    return Listing(
        folder=file,
        classes=classes,
        samples=samples,
        names=hashlib.sha256(names).hexdigest(),
        sizes=combined([row.size for row in rows]),
    )


def _classes(labels: Iterable[str]) -> list[str]:
    """The labels in order, of numbers if all are."""
    unique = sorted(set(labels))
    if all(_INTEGER.fullmatch(label) for label in unique):
        return sorted(unique, key=int)
    return unique


def _check_labels(file: Path, rows: _Rows, known: set[str]) -> None:
    """Raise UserError for a label that no training image has."""
    for row in rows:
        if row.label not in known:
            problem = (
                f"the label {row.label!r} is not among those of the training images; correct "
                f"it, or add images of it with the {SPLIT} {TRAIN}"
            )
            raise _error(file, problem, row.place)
