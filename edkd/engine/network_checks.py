"""Checks of networks against the data: they run, and return a logit for each class."""

from collections.abc import Sequence

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
    needs: Sequence[str] = (),
) -> None:
    """Run each network on two black images.

    Args:
        students: on any device.
        teachers: on any device.
        info: about the images.
        needs: what the method reads of a teacher, see `Distiller.teacher_needs`.

    Raises:
        UserError: one cannot run on images of this shape, does not return a logit for each class,
            or lacks features that are needed.
    """
    for role, networks in (("student", students), ("teacher", teachers)):
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
            if role == "teacher" and "feats" in needs and not features["feats"]:
                raise UserError(
                    f"the teacher {name_of(network)} has no stages and so no feature maps, which "
                    "the method reads; choose another teacher, or a method that reads logits"
                )


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
