"""Reading the file of a study: its keys, their types, and the files that it names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edkd.engine.config.plugins import import_plugins
from edkd.engine.config.scalars import Scalar, plain
from edkd.errors import UserError
from edkd.hints import unknown
from edkd.sweep.file import content_of, files_of
from edkd.sweep.options import Options, options_of, wrong
from edkd.tune.space import Space, space_of

KEYS = (
    "config",
    "search",
    "set",
    "plugins",
    "trials",
    "epochs",
    "halving",
    "val_split",
    "seed",
    "seeds",
    "name",
)

_MOST = 100_000
"""Trials and epochs at most."""


class Halving(NamedTuple):
    """When a trial ends early."""

    min_epochs: int | None
    """Epochs before the first decision; None: so many that there are two decisions."""
    reduction: int
    """Of so many trials, about one goes on after a decision."""


class TuneFile(NamedTuple):
    """The content of the file."""

    path: Path
    config: str
    """Path of a YAML file that exists."""
    space: Space
    fixed: Options
    """Options of all trials and of the final runs."""
    plugins: list[str]
    trials: int
    epochs: int | None
    """Of a trial; None: as many as of the configuration."""
    halving: Halving | None
    """None: every trial runs to its end."""
    val_split: float
    seed: int
    """Of the search."""
    seeds: list[int]
    """Of the final runs."""
    name: str
    """Of the study's folder."""


def read_tune(file: str) -> TuneFile:
    """Read the file of a study.

    Raises:
        UserError: it is absent or not valid, has an unknown key or a value of a wrong type, or
            names a file that does not exist.
    """
    path, content = content_of(file, KEYS, "search or set")

    # The keys are known only after the plugins are imported.
    plugins = files_of(path, "plugins", content) if "plugins" in content else []
    import_plugins(plugins)

    return TuneFile(
        path,
        _config(path, content),
        space_of(path, content.get("search")),
        options_of(path, content.get("set", {})),
        plugins,
        _whole(path, "trials", content, 20),
        _whole(path, "epochs", content, 0) or None,
        _halving(path, content),
        _val_split(path, content),
        _whole(path, "seed", content, 0, low=0),
        _seeds(path, content),
        _name(path, content),
    )


def _config(path: Path, content: Mapping[str, Any]) -> str:
    """The one configuration."""
    value = content.get("config")
    if not isinstance(value, Scalar) or not value.text:
        raise wrong(path, "config", "the name of one YAML file", value)

    found = files_of(path, "config", {"config": [value]})
    if len(found) > 1:
        raise wrong(path, "config", "the name of one YAML file", value)
    return found[0]


def _whole(
    path: Path, key: str, content: Mapping[str, Any], default: int, low: int = 1, place: str = ""
) -> int:
    """A whole number of a file, or the default.

    Args:
        place: of the key in the file, as "halving: ".
    """
    if key not in content:
        return default
    number = plain(content[key])
    if type(number) is not int or not low <= number <= _MOST:
        expected = f"a whole number from {low} to {_MOST}"
        raise wrong(path, f"{place}{key}", expected, content[key])
    return number


def _halving(path: Path, content: Mapping[str, Any]) -> Halving | None:
    value = content.get("halving", {})
    if plain(value) is False:
        return None
    if not isinstance(value, dict):
        raise wrong(path, "halving", "False, or as {min_epochs: 2, reduction: 3}", value)

    for name in value:
        if name not in Halving._fields:
            raise UserError(f"{path}: halving: {unknown('key', name, Halving._fields)}")
    place = "halving: "
    min_epochs = _whole(path, "min_epochs", value, 0, place=place) or None
    return Halving(min_epochs, _whole(path, "reduction", value, 3, low=2, place=place))


def _val_split(path: Path, content: Mapping[str, Any]) -> float:
    share = plain(content.get("val_split", Scalar("0.1", 0.1)))
    if type(share) not in (int, float) or not 0 < share < 1:
        raise wrong(
            path,
            "val_split",
            "above 0 and below 1, the share of the training images that is held out (the test set "
            "does not choose hyper-parameters)",
            content["val_split"],
        )
    return float(share)


def _seeds(path: Path, content: Mapping[str, Any]) -> list[int]:
    seeds = plain(content.get("seeds", [1, 2, 3]))
    is_list = isinstance(seeds, list) and bool(seeds)
    if not is_list or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise wrong(path, "seeds", "a list of whole numbers, as [1, 2, 3]", content["seeds"])
    return list(dict.fromkeys(seeds))


def _name(path: Path, content: Mapping[str, Any]) -> str:
    """The name of the study: that of the file by default."""
    value = content.get("name", Scalar(path.stem, path.stem))
    name = value.text if isinstance(value, Scalar) else ""
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise wrong(path, "name", "the name of a folder, without slashes", value)
    return name
