"""What a trained network returns for the images of a set, collected on the CPU."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edkd.dataset import DataSet, Loader
from edkd.errors import UserError
from edkd.types import class_numbers

LOGITS = "logits"
POOLED = "pooled_feat"
FEATS = "feats"

SPLITS = ("test", "val", "train")


class Chosen(NamedTuple):
    """Images of a set, on the device."""

    image: Tensor
    """(N,3,H,W), float32, normalised."""
    target: Tensor
    """(N,), class numbers."""
    position: Tensor
    """(N,), place of each image in the set, from 0, on the CPU."""


class Outputs(NamedTuple):
    """Outputs of a network for N images, float32 on the CPU; empty where they were not wanted."""

    target: Tensor
    """(N,), class numbers."""
    position: Tensor
    """(N,), place of each image in the set, from 0."""
    logits: Tensor
    """(N,C)."""
    pooled_feat: Tensor
    """(N,D), the input of the classifier."""
    feats: list[Tensor]
    """Of each stage that was wanted: (N,D), means over H and W, or whole maps (N,D,H,W)."""


def loader_of(data: DataSet, split: str) -> Loader:
    """The images of a split: "test", "val" or "train".

    "val" are the images that choose the best epoch: those of `test` where none are held out.
    Training images are those of the first epoch, in their augmented views, in its order.

    Raises:
        UserError: there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"no images {split!r}; choose from {', '.join(SPLITS)}")
    return getattr(data, split) or data.test


@torch.inference_mode()
def collect(
    network: nn.Module,
    data: DataSet,
    split: str = "test",
    what: Sequence[str] = (LOGITS,),
    limit: int = 0,
    classes: Sequence[int] = (),
    stages: Sequence[int] | None = None,
    whole_maps: bool = False,
) -> Outputs:
    """Run a network on the images of a set, in float32.

    Args:
        network: in eval mode, on the device of the data; returns logits and features.
        data: of the run.
        split: see `loader_of`.
        what: some of "logits", "pooled_feat" and "feats".
        limit: see `chosen_batches`.
        classes: see `chosen_batches`.
        stages: numbers of the entries of `feats`, the stem is 0; None: all.
        whole_maps: keep H and W of `feats`, which takes much memory; False: their means.

    Returns:
        The outputs, in the order of the set.

    Raises:
        UserError: there are no such images, or the network has no such features.
    """
    unknown = set(what) - {LOGITS, POOLED, FEATS}
    if unknown:
        raise ValueError(f"networks have no {', '.join(sorted(unknown))}")

    parts: list[dict[str, Any]] = []
    for batch in chosen_batches(loader_of(data, split), limit, classes):
        logits, features = network(batch.image)
        part: dict[str, Any] = {"target": batch.target.cpu(), "position": batch.position}
        if LOGITS in what:
            part[LOGITS] = _kept(logits)
        if POOLED in what:
            part[POOLED] = _kept(features[POOLED])
        if FEATS in what:
            maps = stage_maps(features, stages)
            part[FEATS] = [_kept(each if whole_maps else each.mean((2, 3))) for each in maps]
        parts.append(part)
    return _joined(parts, split)


def stage_maps(features: Any, stages: Sequence[int] | None = None) -> list[Tensor]:
    """The feature maps (N,D,H,W) of stages, stem first.

    Raises:
        UserError: a stage is not there.
    """
    maps = list(features[FEATS])
    wanted = range(len(maps)) if stages is None else stages
    for number in wanted:
        if not 0 <= number < len(maps):
            raise UserError(
                f"no stage {number}: the network has {len(maps)}, of which the stem is stage 0"
            )
    return [maps[number] for number in wanted]


def chosen_batches(loader: Loader, limit: int = 0, classes: Sequence[int] = ()) -> Iterator[Chosen]:
    """The images of a set in batches, in its order; the same ones in each call.

    Args:
        loader: of the set.
        limit: number of images, evenly spaced in the set, as folders are in the order of their
            classes; 0 or more than there are: all.
        classes: only images of these classes, among those of the limit; empty: of all.
    """
    wanted = positions(loader.num_images, limit)
    allowed = torch.tensor(classes) if classes else None
    first = 0
    for batch in loader.epoch(1):
        size = len(batch.image)
        place = wanted[(wanted >= first) & (wanted < first + size)]
        target = class_numbers(batch.target)
        if allowed is not None:
            place = place[torch.isin(target.cpu()[place - first], allowed)]

        rows = (place - first).to(target.device)
        if len(rows):
            yield Chosen(batch.image[rows], target[rows], place)
        first += size


def positions(number: int, limit: int) -> Tensor:
    """Places of `limit` of `number` images, evenly spaced from 0; all where `limit` is 0."""
    if not limit or limit >= number:
        return torch.arange(number)
    return torch.arange(limit) * number // limit


def _kept(output: Tensor) -> Tensor:
    return output.float().cpu()


def _joined(parts: Sequence[dict[str, Any]], split: str) -> Outputs:
    if not parts:
        raise UserError(f"no {split} image is of the chosen classes; choose others")

    def cat(name: str) -> Tensor:
        return torch.cat([part[name] for part in parts if name in part] or [torch.empty(0)])

    lists = [part[FEATS] for part in parts if FEATS in part]
    feats = [torch.cat(column) for column in zip(*lists, strict=True)]
    return Outputs(cat("target"), cat("position"), cat(LOGITS), cat(POOLED), feats)
