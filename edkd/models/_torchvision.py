"""The classification models of torchvision, as "torchvision/resnet50"."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edkd.archive import is_whole
from edkd.download import Options, download
from edkd.errors import UserError, reason_of
from edkd.models._fixed_size import with_fixed_size
from edkd.models._libraries import Library, LibraryFacts, Unreachable, add_library
from edkd.signals import hold
from edkd.types import InputSpec

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads that two architectures have in training only; they are left out here."""

_WITH_AUXILIARY = ("googlenet", "inception_v3")

_DATASET = "ImageNet-1K"

_HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")
"""In the name of a file: the beginning of its SHA-256."""

_ATTEMPTS = Options(retries=1, timeout=20.0)


@add_library
class Torchvision(Library):
    """Pretrained weights are the `DEFAULT` ones of a model, kept in the cache of torch.hub.

    GoogLeNet and Inception v3 have no auxiliary heads, and take images that are normalised with the
    statistics of ImageNet.
    """

    name = "torchvision"

    def names(self) -> list[str]:
        """Those of `torchvision.models`."""
        models = _models()
        return models.list_models(module=models)

    def build(self, name: str, num_classes: int) -> nn.Module:
        """The network as torchvision draws it; one of a fixed size resizes its images."""
        options: dict[str, Any] = {}
        if name in _WITH_AUXILIARY:
            options = dict(aux_logits=False, transform_input=True, init_weights=True)
        model = _models().get_model(name, weights=None, num_classes=num_classes, **options)

        if name in _WITH_AUXILIARY:
            model.training_heads = _AUXILIARY
        side = getattr(model, "image_size", None)
        return with_fixed_size(model, (side, side) if side else None)

    def facts(self, name: str) -> LibraryFacts | None:
        """From the enumeration of the weights."""
        weights = _weights(name)
        if weights is None:
            return None

        images = weights.transforms()
        size = images.crop_size[0]
        names = tuple(weights.meta.get("categories", ()))
        figures = weights.meta.get("_metrics", {}).get(_DATASET, {})

        return LibraryFacts(
            num_classes=len(names),
            input=InputSpec(
                (3, size, size),
                tuple(images.mean),
                tuple(images.std),
                images.resize_size[0],
                images.interpolation.value,
            ),
            accuracy=figures.get("acc@1"),
            licence=weights.meta.get("license", ""),
            class_names=names,
            source=weights.url,
        )

    def download(self, name: str) -> dict[str, Tensor]:
        """Resumed where it was interrupted, and verified."""
        url = _weights(name).url
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
        found = _HASH.search(path.name)
        check = f"sha256:{found[1]}" if found else ""

        if not is_whole(path, check):
            _fetch(url, path, check)
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}


def _fetch(url: str, path: Path, check: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download(url, path, check, options=_ATTEMPTS)
    except UserError as error:
        raise Unreachable(reason_of(error.__cause__ or error)) from error
    except OSError as error:
        raise Unreachable(f"{path.parent}: {reason_of(error)}") from error


def _models() -> Any:
    try:
        with hold():  # a signal must not interrupt the import
            import torchvision.models
    except ImportError as error:
        raise UserError(
            f"models of torchvision need the package torchvision ({reason_of(error)}): "
            "pip install torchvision"
        ) from None
    return torchvision.models


def _weights(name: str) -> Any:
    """The member of the enumeration of a model's weights; None where it has none."""
    return getattr(_models().get_model_weights(name), "DEFAULT", None)
