"""Records of the YAML files that come with a checkout: configurations and suites of runs."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from edkd.engine.config.shared import KEYS
from edkd.engine.config.strict_yaml import BASE
from edkd.listing.cached import Record
from edkd.paths import CONFIGS

SUITES = "suites"
"""Folder of the suites, beside those of the data sets."""

_OTHERS = (SUITES, "tune", "wandb")
"""Folders of files that are no configurations: sweeps and studies."""

_DEEPEST = 5
"""Files that a configuration may be based on, one on another."""

_PUBLISHED = re.compile(r"^Published top-1: (?P<figure>[\d.]+)?(?P<rest>.*)$", re.MULTILINE)

_PROTOCOL = re.compile(r"\bP(?:\d+|[A-Z]{2,}[a-z]?)\b")
"""As P240 or PINb: the short name of a schedule."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def configs() -> list[Record]:
    """A record for each configuration."""
    paths = sorted(CONFIGS.rglob("*.yaml"))
    bases: dict[Path, Record] = {}
    return [_config(path, bases) for path in paths if _is_config(path)]


def suites() -> list[Record]:
    """A record for each suite, which `edkd sweep` runs."""
    return [_suite(path) for path in sorted((CONFIGS / SUITES).glob("*.yaml"))]


def _is_config(path: Path) -> bool:
    folder = path.relative_to(CONFIGS).parts[0]
    return not path.name.startswith("_") and folder not in _OTHERS


def _config(path: Path, bases: dict[Path, Record]) -> Record:
    text = path.read_text(encoding="utf-8")
    header = _header(text)
    values = _merged(path, text, bases)

    distiller = values.get("DISTILLER", {})
    solver = values.get("SOLVER", {})

    return {
        "name": _shown(path),
        "title": header.partition("\n")[0],
        "method": distiller.get("TYPE", KEYS["DISTILLER.TYPE"].default),
        "teacher": distiller.get("TEACHER", ""),
        "student": distiller.get("STUDENT", ""),
        "dataset": values.get("DATASET", {}).get("TYPE", ""),
        "epochs": solver.get("EPOCHS"),
        "update": solver.get("TRAINER", ""),
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
    text = path.read_text(encoding="utf-8")
    content = yaml.load(text, Loader=_LOADER) or {}

    return {
        "name": _shown(path),
        "title": _first_sentence(_header(text)),
        "configs": len(content.get("configs") or []),
        "seeds": len(content.get("seeds") or []),
    }


def _first_sentence(header: str) -> str:
    """Up to the first full stop or colon; a line may end within it."""
    return re.split(r"[.:](?:\s|$)", " ".join(header.split()))[0]


def _merged(path: Path, text: str, bases: dict[Path, Record], depth: int = 0) -> Record:
    """The values of a configuration, on top of those that it is based on."""
    values = yaml.load(text, Loader=_LOADER) or {}
    base = values.pop(BASE, "")

    if not base or depth == _DEEPEST:
        return values

    below = (path.parent / base).resolve()
    if below not in bases:
        bases[below] = _merged(below, below.read_text(encoding="utf-8"), bases, depth + 1)
    return _on_top(bases[below], values)


def _on_top(below: Record, above: Record) -> Record:
    """Nested values of two files; those of `above` count."""
    both = dict(below)

    for key, value in above.items():
        held = both.get(key)
        if isinstance(held, dict) and isinstance(value, dict):
            both[key] = _on_top(held, value)
        else:
            both[key] = value
    return both


def _header(text: str) -> str:
    """The comment at the top of a file."""
    return "\n".join(_comments(text))


def _comments(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").strip()


def _shown(path: Path) -> str:
    """The path as it is given to --cfg."""
    return path.relative_to(CONFIGS.parent).as_posix()
