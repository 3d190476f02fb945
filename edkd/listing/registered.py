"""Records of what is registered. Importing it all takes seconds, see `cached`."""

import sys
from collections.abc import Sequence

from edkd.catalogue import CATALOGUE
from edkd.engine.config.plugins import import_plugins
from edkd.engine.config.table import NAMES, allowed, shown_default, table
from edkd.errors import UserError
from edkd.keys import Key
from edkd.listing.cached import Record
from edkd.listing.papers import described
from edkd.models import LIBRARIES, SEPARATOR
from edkd.registry import DATASETS, METHODS, MODELS, UPDATES, Entry, Registry


def registered(plugins: Sequence[str] = ()) -> dict[str, list[Record]]:
    """All records, by what they are of: "methods", "models", "datasets", "updates", "keys".

    Args:
        plugins: files that register more.
    """
    import_plugins(plugins)
    keys = table()  # imports all that registers
    return {
        "methods": [_about(entry) for entry in _entries(METHODS)],
        "models": [*_own_models(), *_models_of_libraries()],
        "datasets": [_dataset(entry) for entry in _entries(DATASETS)],
        "updates": [_about(entry) for entry in _entries(UPDATES)],
        "keys": [_key(name, key) for name, key in keys.items()],
    }


def _entries(registry: Registry) -> list[Entry]:
    return sorted(registry.entries(), key=lambda entry: entry.name.lower())


def _about(entry: Entry) -> Record:
    """Name, title and paper of an entry; these are in the docstring of its file."""
    module = sys.modules.get(getattr(entry.value, "__module__", None) or "")
    about = described(getattr(module, "__doc__", None))
    return {"name": entry.name, **about._asdict()}


def _dataset(entry: Entry) -> Record:
    shape = entry.info.get("image_shape")
    return {
        **_about(entry),
        "images": "x".join(map(str, shape)) if shape else "",
        "classes": entry.info.get("num_classes"),
        "download": entry.name in CATALOGUE,
    }


def _own_models() -> list[Record]:
    """Those of the package and of plugins, by family."""
    return sorted(map(_model, _entries(MODELS)), key=lambda record: record["family"])


def _model(entry: Entry) -> Record:
    family = entry.info.get("family", "")
    return {
        **_about(entry),
        "name": f"{family}{SEPARATOR}{entry.name}" if family else entry.name,
        "family": family,
        "weights": bool(entry.info.get("weights")),
    }


def _models_of_libraries() -> list[Record]:
    """The models of the libraries that are installed."""
    records = []
    for library in LIBRARIES.values():
        try:
            names = library.names()
        except UserError:  # it is not installed
            continue
        title = f"of {library.name}"
        records += [
            {"name": f"{library.name}{SEPARATOR}{name}", "title": title, "library": library.name}
            for name in names
        ]
    return records


def _key(name: str, key: Key) -> Record:
    registry = NAMES.get(name)
    return {
        "name": name,
        "title": key.help,
        "default": shown_default(key),
        "allowed": allowed(name, key),
        "choices": registry.names() if registry else list(key.choices),
    }
