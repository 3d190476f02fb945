"""The heads of the students: whether they alone are trained, and their learning rate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from edkd.errors import UserError
from edkd.keys import Key

ALL = "all"
HEAD = "head"

KEYS = {
    "SOLVER.TRAIN_ONLY": Key(
        ALL,
        "which weights of the student are trained: all, or those of the head, its last layer; the "
        "rest then stays in evaluation mode, batch norm and dropout included",
        choices=(ALL, HEAD),
    ),
    "SOLVER.HEAD_LR_FACTOR": Key(
        1.0,
        "learning rate of the student's head, as a multiple of SOLVER.LR; a new head needs a "
        "higher one than pretrained weights",
        low=0.0,
    ),
}


class Heads(NamedTuple):
    """The last layers of the students, where they are trained differently from the rest."""

    layers: tuple[nn.Module, ...]
    factor: float
    """Of their learning rate."""
    fixed: tuple[nn.Module, ...]
    """The students of which nothing but the head learns."""


def heads_of(students: Sequence[nn.Module], cfg: Any, num_classes: int) -> Heads | None:
    """The heads as SOLVER describes them; None where they are trained as the rest is.

    With TRAIN_ONLY head, the other parameters of the students need no gradient from here on.

    Args:
        students: the networks that learn.
        cfg: TRAIN_ONLY and HEAD_LR_FACTOR of SOLVER are read.
        num_classes: outputs of a head.

    Raises:
        UserError: the head of a student cannot be found.
    """
    solver = cfg.SOLVER
    is_fixed = solver.TRAIN_ONLY == HEAD
    if not is_fixed and solver.HEAD_LR_FACTOR == 1.0:
        return None

    key = "SOLVER.TRAIN_ONLY head" if is_fixed else "SOLVER.HEAD_LR_FACTOR"
    layers = [layer for student in students for layer in head_layers(student, num_classes, key)]
    heads = Heads(tuple(layers), solver.HEAD_LR_FACTOR, tuple(students) if is_fixed else ())

    fixed = _fixed_ids(heads)
    for student in heads.fixed:
        for parameter in student.parameters():
            if id(parameter) in fixed:
                parameter.requires_grad_(False)
    return heads


def head_layers(network: nn.Module, num_classes: int, key: str) -> list[nn.Module]:
    """The last layer with an output for each class, and layers of its shape beside it.

    Networks with a second head for distillation have two such layers.

    Args:
        num_classes: outputs of the head.
        key: that needs the head, for messages.

    Raises:
        UserError: there is no such layer.
    """
    found = {
        name: module
        for name, module in network.named_modules()
        if _shape(module)[:1] == (num_classes,)
    }
    if not found:
        own = getattr(network, "module", network)
        raise UserError(
            f"{key}: the head of {type(own).__name__} was not found: it has no nn.Linear and no "
            f"convolution with {num_classes} outputs, one for each class; set SOLVER.TRAIN_ONLY "
            "all and SOLVER.HEAD_LR_FACTOR 1"
        )

    last = next(reversed(found))
    shape = _shape(found[last])
    return [
        module
        for name, module in found.items()
        if _parent(name) == _parent(last) and _shape(module) == shape
    ]


def classifier_of(network: nn.Module, num_classes: int, method: str) -> nn.Linear:
    """The last linear layer of a network, with an output for each class.

    Args:
        num_classes: its outputs.
        method: that needs it, for messages.

    Raises:
        UserError: the network has no such layer.
    """
    classifier = find_classifier(network, num_classes)
    if classifier is None:
        own = getattr(network, "module", network)
        raise UserError(
            f"{method} needs the classifier of {type(own).__name__}, but it has no nn.Linear with "
            f"{num_classes} outputs, one for each class; use another network, or another "
            "DISTILLER.TYPE"
        )
    return classifier


def find_classifier(network: nn.Module, num_classes: int) -> nn.Linear | None:
    """The last linear layer of a network, if it has an output for each class."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers or layers[-1].out_features != num_classes:
        return None
    return layers[-1]


def with_heads(groups: Sequence[dict[str, Any]], heads: Heads) -> list[dict[str, Any]]:
    """Parameter groups with the heads in groups of their own, and without fixed parameters.

    Args:
        groups: see `as_groups`.
        heads: of the students.
    """
    of_head = _head_ids(heads)
    fixed = _fixed_ids(heads)

    found = []
    for group in groups:
        learning = [p for p in group["params"] if id(p) not in fixed]
        body = [p for p in learning if id(p) not in of_head]
        head = [p for p in learning if id(p) in of_head]
        if body:
            found.append(group | {"params": body})
        if head:
            rate = "lr" if "lr" in group else "lr_factor"
            own = group.get(rate, 1.0) * heads.factor
            found.append(group | {"params": head, rate: own})
    return found


def _head_ids(heads: Heads) -> set[int]:
    return {id(parameter) for layer in heads.layers for parameter in layer.parameters()}


def _fixed_ids(heads: Heads) -> set[int]:
    """Ids of the students' parameters that do not learn."""
    all_ids = {id(parameter) for student in heads.fixed for parameter in student.parameters()}
    return all_ids - _head_ids(heads)


def _shape(module: nn.Module) -> tuple[int, ...]:
    """(outputs, inputs) of a layer that can be a head; () for any other module."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels, module.in_channels
    return ()


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
