"""Lists of images and their labels: CSV and parquet files with columns path, label and split."""

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_DELIMITERS = ",;\t"
_INTEGER = re.compile(r"[+-]?\d+")


class Row(NamedTuple):
    """An image of a list."""

    place: str
    """Where it stands, for messages: "line 7"."""
    path: str
    """As written."""
    label: str
    part: str
    """"train", "val", "test", or "" where the list has no column `split`."""


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
        raise UserError(f"DATASET.LIST: no file {file}; {_FORM}")

    is_parquet = file.suffix.lower() in (".parquet", ".pq")
    records = _parquet(file) if is_parquet else _csv(file)
    rows = [_row(file, place, record) for place, record in records]
    if not rows:
        raise UserError(f"DATASET.LIST: {file} has no rows")

    _check_repeated(file, rows)
    base = Path(root).expanduser() if root else file.parent
    sizes = _sizes(file, base, rows)
    return _parts(file, base, rows, sizes, fraction, seed)


# Reading.


def _csv(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The place and the fields of each row."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            delimiter = max(_DELIMITERS, key=header.count)
            (names,) = csv.reader([header], delimiter=delimiter)
            columns = _columns(file, names)

            reader = csv.reader(stream, delimiter=delimiter)
            for fields in reader:
                if any(field.strip() for field in fields):
                    fields += [""] * (len(names) - len(fields))
                    record = {name: fields[number] for name, number in columns.items()}
                    yield f"line {reader.line_num + 1}", record
    except UnicodeDecodeError:
        raise UserError(f"DATASET.LIST: {file} is not UTF-8 text; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise UserError(f"DATASET.LIST: {file} is no CSV file ({error}); {_FORM}") from None


def _parquet(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The place and the fields of each row."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"DATASET.LIST {file} needs pyarrow: pip install 'edkd[tables]'") from None

    try:
        names = parquet.read_schema(file).names
        columns = _columns(file, names)
        table = parquet.read_table(file, columns=[names[number] for number in columns.values()])
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"DATASET.LIST: {file} is no parquet file ({reason})") from None

    values = [table.column(names[number]).to_pylist() for number in columns.values()]
    for number, fields in enumerate(zip(*values, strict=True), 1):
        yield f"row {number}", dict(zip(columns, fields, strict=True))


def _columns(file: Path, names: Sequence[str]) -> dict[str, int]:
    """The numbers of the columns that are read, by name."""
    lower = [name.strip().lower() for name in names]
    absent = [name for name in (PATH, LABEL) if name not in lower]
    if absent:
        found = ", ".join(printable(name) for name in names)
        raise UserError(
            f"DATASET.LIST: {file} has no column {' and no column '.join(absent)} (columns: "
            f"{found}); {_FORM}"
        )
    return {name: lower.index(name) for name in (PATH, LABEL, SPLIT) if name in lower}


def _row(file: Path, place: str, record: Mapping[str, Any]) -> Row:
    """A row with a path, a label and a known part; UserError for others."""
    texts = {name: "" if value is None else str(value).strip() for name, value in record.items()}
    where = f"DATASET.LIST: {file}, {place}"
    for name in (PATH, LABEL):
        if not texts[name]:
            raise UserError(f"{where}: the {name} is empty; fill it in, or remove the row")

    split = texts.get(SPLIT)
    if split is None:
        return Row(place, texts[PATH], texts[LABEL], "")
    part = _SPLITS.get(split.lower())
    if part is None:
        raise UserError(f"{where}: the split is {split!r}, not train, val or test")
    return Row(place, texts[PATH], texts[LABEL], part)


# Checks.


def _check_repeated(file: Path, rows: Sequence[Row]) -> None:
    """Raise UserError for an image that is listed twice: it could be in two parts."""
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(os.path.normpath(row.path), row)
        if other is not row:
            raise UserError(
                f"DATASET.LIST: {file}, {row.place}: {printable(row.path)} stands in "
                f"{other.place}, too; keep one of the rows"
            )


def _sizes(file: Path, base: Path, rows: Sequence[Row]) -> list[int]:
    """The sizes of the files in bytes; UserError where one is missing."""
    sizes = in_threads(lambda row: _size(os.path.join(base, row.path)), rows)
    missing = [row for row, size in zip(rows, sizes, strict=True) if size is None]
    if missing:
        row = missing[0]
        more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise UserError(
            f"DATASET.LIST: {file}, {row.place}: no file {printable(row.path)} in {base}{more}; "
            "correct the paths, or set DATASET.ROOT to the folder that they begin in"
        )
    return [size for size in sizes if size is not None]


def _size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.isfile(path) else None


# Parts.


def _parts(
    file: Path, base: Path, rows: Sequence[Row], sizes: Sequence[int], fraction: float, seed: int
) -> Parts:
    learned = [row for row in rows if row.part in ("", TRAIN)]
    classes = _classes(row.label for row in learned)
    numbers = {name: number for number, name in enumerate(classes)}
    _check_classes(file, rows, numbers)

    def listing(part: str) -> Listing:
        chosen = [number for number, row in enumerate(rows) if row.part == part]
        own = [rows[number] for number in chosen]
        names = portable([text for row in own for text in (row.path, row.label)])
        return Listing(
            folder=file,
            classes=classes,
            samples=[(os.path.join(base, row.path), numbers[row.label]) for row in own],
            names=hashlib.sha256(names).hexdigest(),
            sizes=combined([sizes[number] for number in chosen]),
        )

    present = {row.part for row in rows}
    if present == {""}:
        return split_parts(listing(""), fraction, seed)
    if TRAIN not in present:
        raise UserError(f"DATASET.LIST: {file} has no row with the split {TRAIN}")
    if present == {TRAIN}:
        return split_parts(listing(TRAIN), fraction, seed)
    if present == {TRAIN, _VAL}:
        return Parts(listing(TRAIN), None, listing(_VAL))
    val = listing(_VAL) if _VAL in present else None
    return Parts(listing(TRAIN), val, listing(TEST))


def _classes(labels: Iterator[str]) -> list[str]:
    """The labels in order, of numbers if all are."""
    unique = set(labels)
    key: Callable[[str], Any] = str
    if all(_INTEGER.fullmatch(label) for label in unique):
        key = int
    return sorted(unique, key=key)


def _check_classes(file: Path, rows: Sequence[Row], known: Mapping[str, int]) -> None:
    """Raise UserError for a label that no training image has."""
    for row in rows:
        if row.label not in known:
            raise UserError(
                f"DATASET.LIST: {file}, {row.place}: the label {row.label!r} is not among those "
                f"of the training images; correct it, or add images of it with the split {TRAIN}"
            )
