"""Records of the YAML files that come with a checkout: configurations and suites of runs."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from edkd.engine.config.scalars import plain, shown
from edkd.engine.config.shared import KEYS
from edkd.engine.config.strict_yaml import read_file
from edkd.errors import UserError, warn
from edkd.listing import values
from edkd.listing.cached import Record
from edkd.listing.values import Reader
from edkd.paths import CONFIGS

SUITES = "suites"
"""Folder of the suites, beside those of the data sets."""

_OTHERS = (SUITES, "tune", "wandb")
"""Folders of files that are no configurations: sweeps and studies."""

_PUBLISHED = re.compile(r"^Published top-1: (?P<figure>\d+(?:\.\d+)?)?(?P<rest>.*)$", re.MULTILINE)

_PROTOCOL = re.compile(r"\bP(?:\d+|[A-Z]{2,}[a-z]?)\b")
"""As P240 or PINb: the short name of a schedule."""


def configs() -> list[Record]:
    """A record for each configuration."""
    paths = filter(_is_config, sorted(CONFIGS.rglob("*.yaml")))
    return _records(paths, partial(_config, Reader()))


def suites() -> list[Record]:
    """A record for each suite, which `edkd sweep` runs."""
    return _records(sorted((CONFIGS / SUITES).glob("*.yaml")), _suite)


def _records(paths: Iterable[Path], read: Callable[[Path], Record]) -> list[Record]:
    """A record for each file; one that cannot be read is left out with a warning."""
    records = []
    for path in paths:
        try:
            records.append(read(path))
        except UserError as error:
            warn(f"{error}; it is left out")
    return records


def _is_config(path: Path) -> bool:
    folder = path.relative_to(CONFIGS).parts[0]
    return not path.name.startswith("_") and folder not in _OTHERS


def _config(reader: Reader, path: Path) -> Record:
    name = _shown(path)
    found = reader.values(path, name)
    header = _header(path)

    return {
        "name": name,
        "title": header.partition("\n")[0],
        "method": found.get(values.METHOD, KEYS[values.METHOD].default),
        "teacher": found.get(values.TEACHER, ""),
        "student": found.get(values.STUDENT, ""),
        "dataset": found.get(values.DATASET, ""),
        "epochs": found.get(values.EPOCHS),
        "update": found.get(values.UPDATE, ""),
        **_published(header),
    }


def _published(header: str) -> Record:
    """The figure that a header names, where it is from, and its protocol."""
    found = _PUBLISHED.search(header)
    if found is None:
        return {"published": None, "source": "", "protocol": ""}

    figure = found["figure"]
    protocol = _PROTOCOL.search(header)
    return {
        "published": float(figure) if figure else None,
        "source": found["rest"].strip(" ()"),
        "protocol": protocol[0] if protocol else "",
    }


def _suite(path: Path) -> Record:
    name = _shown(path)
    content = read_file(path, name)

    return {
        "name": name,
        "title": _first_sentence(_header(path)),
        "configs": _count(content, "configs", name),
        "seeds": _count(content, "seeds", name),
    }


def _count(content: Record, key: str, where: str) -> int:
    """The number of items of a list, which may be absent."""
    items = plain(content.get(key, []))
    if not isinstance(items, list):
        raise UserError(f"{where}: {key} must be a list, not {shown(items)}")
    return len(items)


def _first_sentence(header: str) -> str:
    """Up to the first full stop or colon; a line may end within it."""
    return re.split(r"[.:](?:\s|$)", " ".join(header.split()))[0]


def _header(path: Path) -> str:
    """The comment at the top of a file."""
    text = path.read_text(encoding="utf-8")
    return "\n".join(_comments(text))


def _comments(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").strip()


def _shown(path: Path) -> str:
    """The path as it is given to --cfg."""
    return path.relative_to(CONFIGS.parent).as_posix()
