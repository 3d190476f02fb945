"""Checks of networks against the data: they run, and return a logit for each class."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edkd.engine.given_networks import name_of, warn_of_probabilities
from edkd.errors import UserError, reason_of
from edkd.models import OwnInput, unwrapped
from edkd.types import DataInfo


@torch.no_grad()
def check_networks(
    students: Sequence[nn.Module],
    teachers: Sequence[nn.Module],
    info: DataInfo,
    student_needs: Sequence[str] = (),
    teacher_needs: Sequence[str] = (),
) -> None:
    """Run each network on two black images.

    Args:
        students: on any device.
        teachers: on any device.
        info: about the images.
        student_needs: what the method reads of a student, see `Distiller.teacher_needs`.
        teacher_needs: the same for a teacher.

    Raises:
        UserError: one cannot run on images of this shape, does not return a logit for each class,
            or lacks features that are needed.
    """
    roles = (("student", students, student_needs), ("teacher", teachers, teacher_needs))
    for role, networks, needs in roles:
        for network in networks:
            mode = network.training
            logits, features = _run(role, network.eval(), info)
            network.train(mode)

            if logits.shape[-1] != info.num_classes:
                raise UserError(
                    f"the {role} {name_of(network)} returns {logits.shape[-1]} logits, but "
                    f"the data have {info.num_classes} classes; give it one output for each class"
                )
            warn_of_probabilities(role, network, logits)
            _check_features(f"the {role} {name_of(network)}", features, needs)


def _check_features(who: str, features: Mapping[str, Any], needs: Sequence[str]) -> None:
    """Raise UserError where a network lacks features that a method reads."""
    if "feats" in needs and not features["feats"]:
        raise UserError(
            f"{who} has no stages and so no feature maps, which the method reads; choose another "
            "network, or a method that reads logits"
        )
    if "preact_feats" in needs and not features["preact_feats"]:
        raise UserError(
            f"{who} has no feature maps before a ReLU, which the method reads; choose another "
            "network, or another method"
        )
    if "pooled_feat" in needs:
        _ = features["pooled_feat"]  # an error of the network's own where it has none


def _run(role: str, network: nn.Module, info: DataInfo) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of a network for black images."""
    parameter = next(network.parameters(), torch.empty(0))
    image = torch.zeros(2, *info.image_shape, device=parameter.device, dtype=parameter.dtype)
    try:
        return network(image)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        what = f"the {role} {name_of(network)}"
        raise UserError(f"{what} {_reason(network, info, error)}") from error


def _reason(network: nn.Module, info: DataInfo, error: Exception) -> str:
    """Why a network cannot run on images of a shape."""
    shape = "x".join(map(str, info.image_shape))
    wanted = _channels(network)
    if wanted and wanted != info.image_shape[0]:
        return (
            f"takes images of {wanted} channels, but those of the data have {info.image_shape[0]} "
            f"({shape}); convert the images, or choose a network for such images"
        )

    about = " after they were prepared for it" if isinstance(network, OwnInput) else ""
    reason = reason_of(error)[:200].rstrip(".")
    return (
        f"cannot run on the images of the data ({shape}){about}: {reason}; set the size of "
        "the images to its own (the key SIZE of the data set), or choose another network"
    )


def _channels(network: nn.Module) -> int:
    """The channels that the first convolution of a network takes; 0 where it has none."""
    for module in unwrapped(network).modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 0
