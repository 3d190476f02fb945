"""What the engine does with a method: it is made, checked and run."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from edkd.distillers._base import (
    Distiller,
    networks_of,
    own_node,
    students_of,
    uses_published_style,
)
from edkd.distillers._contract import (
    accepted_arguments,
    check_arguments,
    check_gradients,
    check_logits,
    check_losses,
    check_not_empty,
    check_result,
)
from edkd.distillers._groups import as_groups, owner_of
from edkd.distillers._head import heads_of, with_heads
from edkd.distillers._layout import contiguous_batch, contiguous_features
from edkd.distillers._switches import check_shuffling, check_usable, switches_of
from edkd.distillers._task import task_loss_of
from edkd.errors import UserError
from edkd.registry import place
from edkd.types import Batch, DataInfo

# Functions, not methods: a method in the published style may keep modules under any name.


def prepare_batch(distiller: Distiller, batch: Batch) -> Batch:
    """The batch as a step gets it: with contiguous images for the published style."""
    return contiguous_batch(batch) if uses_published_style(type(distiller)) else batch


def evaluation_logits(distiller: Distiller, image: Tensor) -> Tensor:
    """`forward_test`; one of the published style gets contiguous tensors."""
    if not uses_published_style(type(distiller)):
        return distiller.forward_test(image)
    with contiguous_features(networks_of(distiller)):
        return distiller.forward_test(image.contiguous())


def checked_groups(distiller: Distiller) -> list[dict[str, Any]]:
    """`parameter_groups`, which a method may override, checked; the heads are in their own.

    Raises:
        UserError: see `as_groups`.
    """
    owner = owner_of(distiller, distiller.teachers())
    groups = as_groups(owner, distiller.parameter_groups())
    return with_heads(groups, distiller.heads) if distiller.heads else groups


def check_terms(distiller: Distiller, result: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits and the terms of a training step.

    As in mdistiller, terms of the published style may have several elements: their mean counts.

    Raises:
        UserError: the result breaks the contract.
    """
    method = type(distiller)
    logits, terms = check_result(method, result)
    check_losses(method, terms, only_scalars=not uses_published_style(method))
    check_not_empty(method, terms)
    check_logits(method, logits)
    return logits, terms


def check_first_terms(distiller: Distiller, terms: Mapping[str, Tensor]) -> None:
    """Raise UserError where nothing learns from a term of the first step's loss."""
    check_gradients(type(distiller), terms)


def construct(
    method: type[Distiller],
    student: nn.Module,
    teacher: nn.Module | None,
    cfg: Any,
    data: DataInfo | None,
) -> Distiller:
    """Make a method; a constructor in the published style takes no `data`.

    Raises:
        UserError: the method needs arguments that only its own trainer would give, or reads a key
            that the configuration does not have.
    """
    check_arguments(method)
    given = {"student": student, "teacher": teacher, "cfg": cfg, "data": data}
    constructor: Any = method
    accepted = accepted_arguments(constructor)
    try:
        if accepted is None:
            distiller = method(student, teacher, cfg, data=data)
        elif accepted <= given.keys():
            distiller = method(**{name: given[name] for name in accepted})
        else:
            distiller = method(student, teacher, cfg)
    except AttributeError as error:
        _explain_absent_key(method, error)
        raise

    _complete(distiller, cfg, data)
    return distiller


def _complete(distiller: Distiller, cfg: Any, data: DataInfo | None) -> None:
    """Set what a constructor in the published style, which passes the networks on, leaves out."""
    if distiller.hp is None:
        distiller.hp = own_node(type(distiller), cfg)
    if distiller.data is None:
        distiller.data = data
    if cfg is None:
        return

    distiller.teacher_weights = cfg.DISTILLER.TEACHER_WEIGHTS
    distiller.task_criterion = task_loss_of(cfg)
    distiller.switches = switches_of(cfg)
    if distiller.switches.eakd and distiller.has_loss_per_image:
        distiller.reduction = "none"
    if data is not None:
        distiller.heads = heads_of(students_of(distiller), cfg, data.num_classes)


def check_switches(distiller: Distiller, name: str) -> None:
    """Raise UserError where a method cannot use the switches of DISTILLER, as EAKD.

    Args:
        name: DISTILLER.TYPE, for messages.
    """
    method = type(distiller)
    switches = distiller.switches
    own_step = method.training_step is not Distiller.training_step
    runs_itself = own_step or uses_published_style(method)
    obstacle = "runs the networks itself" if runs_itself else ""

    if switches.shuffles:
        check_shuffling(name, obstacle if method.needs_teacher else "has no teacher")
    obstacle = obstacle or _obstacle_to_logits(distiller)
    check_usable(switches, name, obstacle, method.has_loss_per_image)


def _obstacle_to_logits(distiller: Distiller) -> str:
    """Why no switch can change the logits that a method compares, after "which"; "" if it can."""
    method = type(distiller)
    own_merge = method.merge is not Distiller.merge
    if not method.needs_teacher or "logits" not in method.teacher_needs:
        return "compares no logits with a teacher's"
    if own_merge and len(distiller.teachers()) > 1:
        return "merges the outputs of several teachers itself"
    return ""


def _explain_absent_key(method: type[Distiller], error: AttributeError) -> None:
    """Raise UserError where a constructor read a key that the configuration does not have."""
    key = str(error)  # of a configuration, the name alone
    if key.isidentifier() and key.isupper():
        raise UserError(
            f"{method.__name__} ({place(method)}) reads the key {key}, which the configuration "
            f"does not have; declare it in `defaults`, as defaults = dict({key}=1.0)"
        ) from error
