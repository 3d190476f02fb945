"""Finds a network's tensors in a checkpoint, whatever dictionaries and prefixes are around them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MAX_DEPTH = 8
"""Of nested dictionaries."""

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a name that wrappers of a network or of its parts add, as torch.compile."""

_OF_DENSENETS = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names of layers in torchvision's files of DenseNets, from before torch forbade dots in them."""

_COPIES = ("average", "averaged", "avg", "best", "ema", "shadow", "swa", "teacher", "teachers")
"""Words in the name of a second copy of a network, or of another network."""

_AVERAGES = ("ema", "shadow", "swa")
"""First words in the names of averaged copies, as "ema_backbone_conv_weight"."""

_COUNTERS = (
    "decay",
    "initted",
    "n_averaged",
    "num_batches_tracked",
    "num_updates",
    "step",
    "total_ops",
    "total_params",
)
"""Tensors that tools add to a network's own."""

_MAX_HEAD = 4
"""Tensors of a head, or of two."""


class Place(NamedTuple):
    """A tensor of a checkpoint."""

    outer: tuple[str, ...]
    """Keys of the dictionaries around it."""
    key: str
    tensor: Tensor

    @property
    def full(self) -> str:
        """All keys that lead to it, as "model.module.fc.weight"."""
        return ".".join([*self.outer, self.key])


class Match(NamedTuple):
    """The tensors of a checkpoint under one prefix, compared with a network's."""

    prefix: str
    """Before each name, with the keys of the dictionaries around it, as "model.module."."""
    weights: dict[str, Tensor]
    """By the network's names."""
    lacking: list[str]
    """Names of the network that are not there."""
    surplus: list[str]
    """Names beside them that the network does not have."""
    extras: list[str]
    """Tensors beside them that belong to no network: counters, averaged copies."""

    @property
    def misfits(self) -> list[str]:
        """All names that differ."""
        return sorted([*self.lacking, *self.surplus])

    @property
    def rank(self) -> tuple[bool, int]:
        """Low for the plain copy of a network."""
        words = re.split(r"[._]", self.prefix.lower())
        return any(word in _COPIES for word in words), self.prefix.count(".")


def matches(content: Mapping[Any, Any], wanted: Mapping[str, Tensor]) -> list[Match]:
    """All places in a checkpoint that have tensors with names of the network, the best first.

    Args:
        content: of the file.
        wanted: the network's own tensors.
    """
    places = _renamed(list(_places(content, set())), wanted)
    found: dict[str, dict[str, Place]] = defaultdict(dict)
    for place in places:
        for prefix, name in _splits(place):
            if name in wanted:
                found[prefix].setdefault(name, place)

    compared = [_compared(prefix, names, places, wanted) for prefix, names in found.items()]
    return sorted(compared, key=lambda match: (-_quality(match, wanted), match.rank))


def fits(match: Match, wanted: Mapping[str, Tensor]) -> bool:
    """Whether names and shapes are the network's."""
    return not match.misfits and not wrong_shapes(match, wanted)


def wrong_shapes(match: Match, wanted: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors have another shape in the network."""
    return [
        name
        for name, tensor in match.weights.items()
        if tensor.shape != wanted[name].shape and not is_counter(name)
    ]


def head_of(match: Match, wanted: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """The names of a network's head, where nothing else differs.

    The head of a file has another number of classes, or is missing.

    Args:
        match: of the file.
        wanted: the network's own tensors.
        num_classes: of the network.

    Returns:
        [] where nothing differs, or something else does.
    """
    wrong = wrong_shapes(match, wanted)
    names = [*wrong, *match.lacking]
    if match.surplus or len(names) > _MAX_HEAD or len(names) >= len(match.weights):
        return []
    if any(wanted[name].shape[:1] != (num_classes,) for name in names):
        return []

    same_inputs = (match.weights[name].shape[1:] == wanted[name].shape[1:] for name in wrong)
    sizes = {match.weights[name].shape[:1] for name in wrong}
    return names if all(same_inputs) and len(sizes) <= 1 else []


def without(match: Match, names: Sequence[str]) -> Match:
    """A match with some of the network's names left out of the comparison."""
    weights = {name: tensor for name, tensor in match.weights.items() if name not in names}
    lacking = [name for name in match.lacking if name not in names]
    return match._replace(weights=weights, lacking=lacking)


def without_heads(match: Match, heads: Sequence[str]) -> Match:
    """A match in which heads that a network has in training only count as no network's.

    Args:
        heads: beginnings of their names, as "aux1.".
    """
    if not heads:
        return match
    unused = [name for name in match.surplus if name.startswith(tuple(heads))]
    surplus = [name for name in match.surplus if name not in unused]
    return match._replace(surplus=surplus, extras=[*match.extras, *unused])


def is_counter(name: str) -> bool:
    """Whether a name is that of a batch norm's counter of batches, which nothing here uses."""
    return name.endswith("num_batches_tracked")


def is_numbered(match: Match, found: Sequence[Match]) -> bool:
    """Whether a place is one of several whose prefixes differ in a number, as of a cohort."""
    parent = re.sub(r"\d+\.$", "", match.prefix)
    if parent == match.prefix:
        return False
    siblings = re.compile(rf"{re.escape(parent)}\d+\.")
    return any(siblings.fullmatch(other.prefix) for other in found if other is not match)


def is_same(one: Match, other: Match) -> bool:
    """Whether two places hold the same numbers."""
    names = [name for name in one.weights if not is_counter(name)]
    return all(_is_equal(one.weights[name], other.weights[name]) for name in names)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of a file are of one type and have the same numbers."""
    for tensor in (one, other):
        if tensor.is_meta or tensor.layout != torch.strided or tensor.dtype != one.dtype:
            return False
    return torch.equal(one, other)


def has_tensors(content: Mapping[Any, Any]) -> bool:
    """Whether there is a tensor in nested dictionaries."""
    return any(True for _ in _places(content, set()))


def _places(
    content: Mapping[Any, Any], seen: set[int], outer: tuple[str, ...] = ()
) -> Iterator[Place]:
    """The tensors of nested dictionaries, each dictionary once.

    Args:
        content: of the file, or within it.
        seen: identities of the dictionaries so far; a file can hold one in several places.
        outer: keys that lead to the content.
    """
    seen.add(id(content))
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            yield Place(outer, key, value)
        elif isinstance(value, Mapping) and id(value) not in seen and len(outer) < _MAX_DEPTH:
            yield from _places(value, seen, (*outer, key))


def _renamed(places: list[Place], wanted: Mapping[str, Tensor]) -> list[Place]:
    """The same tensors under the network's names: without the parts that wrappers have added."""
    own = {part for name in wanted for part in name.split(".")}
    added = set(_WRAPPERS) - own
    renamed = []
    for place in places:
        parts = [part for part in place.key.split(".") if part not in added]
        key = _OF_DENSENETS.sub(r"\1\2", ".".join(parts))
        renamed.append(place._replace(key=key))
    return renamed


def _splits(place: Place) -> Iterator[tuple[str, str]]:
    """The ways to read a full name as a prefix and a name of the network."""
    yield "", place.full
    for dot in re.finditer(r"\.", place.full):
        yield place.full[: dot.end()], place.full[dot.end() :]


def _compared(
    prefix: str, names: dict[str, Place], places: list[Place], wanted: Mapping[str, Tensor]
) -> Match:
    """Compare what was found under a prefix with the network.

    Args:
        prefix: see `Match`.
        names: the places by the network's names.
        places: all of the file.
        wanted: the network's own tensors.
    """
    weights = {name: place.tensor for name, place in names.items()}
    lacking = [name for name in wanted if name not in weights and not is_counter(name)]

    # What is beside them in the same dictionaries.
    outers = {place.outer for place in names.values()}
    used = {id(place) for place in names.values()}
    surplus = []
    extras = []
    for place in places:
        if place.outer not in outers or id(place) in used:
            continue
        is_inside = place.full.startswith(prefix)
        is_alone = "." not in place.key
        if _belongs_to_no_network(place) and (is_inside or is_alone):
            extras.append(place.key)
        elif is_inside:
            surplus.append(place.full.removeprefix(prefix))
    return Match(prefix, weights, lacking, surplus, extras)


def _belongs_to_no_network(place: Place) -> bool:
    """Whether a tensor is a counter, or one of an averaged copy that lies between the others."""
    if re.split(r"[._]", place.key)[0] in _AVERAGES:
        return True
    is_single = place.tensor.numel() <= 1
    is_whole = not place.tensor.is_floating_point() and not place.tensor.is_complex()
    return is_single and (is_whole or place.key.rsplit(".", 1)[-1] in _COUNTERS)


def _quality(match: Match, wanted: Mapping[str, Tensor]) -> int:
    """High where more of the network is there."""
    right = len(match.weights) - len(wrong_shapes(match, wanted))
    return right - len(match.surplus)
