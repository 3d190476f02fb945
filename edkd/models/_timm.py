"""The models of timm, as "timm/convnext_tiny.fb_in1k". timm is optional."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from torch import Tensor, nn

from edkd.errors import UserError, reason_of
from edkd.models._fixed_size import with_fixed_size
from edkd.models._libraries import Library, LibraryFacts, Unreachable, add_library
from edkd.signals import hold
from edkd.types import INTERPOLATIONS, InputSpec

_PATIENCE = 10.0
"""Seconds in which the hub must answer; otherwise only its cache is used."""


@add_library
class Timm(Library):
    """A name may end with the tag of its weights; without one they are timm's usual ones."""

    name = "timm"
    is_slow = True

    def names(self) -> list[str]:
        """All architectures, and those with tags."""
        timm = _timm()
        return [*timm.list_models(), *timm.list_pretrained()]

    def build(self, name: str, num_classes: int) -> nn.Module:
        """The network as timm draws it; one of a fixed size resizes its images."""
        model = _timm().create_model(name, pretrained=False, num_classes=num_classes)
        cfg = model.default_cfg
        return with_fixed_size(model, cfg["input_size"][1:] if cfg["fixed_input_size"] else None)

    def facts(self, name: str) -> LibraryFacts | None:
        """From the configuration of the weights."""
        cfg = _timm().models.get_pretrained_cfg(name)
        if cfg is None or not cfg.has_weights:
            return None

        channels, height, width = cfg.input_size
        shape = (channels, height, width)

        # Its other ways to crop keep the whole image, as a resize of 0 does.
        is_cropped = cfg.crop_mode == "center"
        shorter = min(height, width)
        resize = max(shorter, math.floor(shorter / cfg.crop_pct)) if is_cropped else 0
        is_known = cfg.interpolation in INTERPOLATIONS
        interpolation = cfg.interpolation if is_known else "bilinear"

        return LibraryFacts(
            num_classes=cfg.num_classes,
            input=InputSpec(shape, tuple(cfg.mean), tuple(cfg.std), resize, interpolation),
            accuracy=None,
            licence=cfg.license or "",
            class_names=_class_names(cfg),
            source=f"huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url,
        )

    def download(self, name: str) -> dict[str, Tensor]:
        """By timm, which keeps the file in the cache of the hub or of torch.hub."""
        timm = _timm()
        try:
            with _offline_if_unreachable():
                return timm.create_model(name, pretrained=True).state_dict()
        except (OSError, RuntimeError, ValueError) as error:
            raise Unreachable(reason_of(error).split(". ")[0]) from error


def _timm() -> Any:
    try:
        with hold():  # a signal must not interrupt the import
            import timm
    except ImportError as error:
        raise UserError(
            f"models of timm need the package timm ({reason_of(error)}): pip install 'edkd[models]'"
        ) from None
    return timm


def _class_names(cfg: Any) -> tuple[str, ...]:
    """The classes of ImageNet where the weights are for one of its sets."""
    data = _timm().data
    subset = data.infer_imagenet_subset(cfg)
    if not subset:
        return ()
    info = data.ImageNetInfo(subset)
    return tuple(info.index_to_description(number) for number in range(cfg.num_classes))


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Let the hub use its cache alone where it does not answer: its own attempts take a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    try:
        urlopen(Request(address, method="HEAD"), timeout=_PATIENCE).close()
    except HTTPError:  # an answer
        return True
    except OSError:
        return False
    return True
