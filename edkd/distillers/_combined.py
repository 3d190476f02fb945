"""Methods combined: DISTILLER.TYPE "KD+DKD"."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from edkd.distillers._base import Distiller, Views, uses_published_style
from edkd.distillers._interface import construct
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, DataInfo, Output

SEPARATOR = "+"

_NOT_COMBINED = (
    "get_learnable_parameters",
    "parameter_groups",
    "deployable",
    "students",
    "architectures",
    "task_loss",
    "turns",
)
"""Parts of the contract that a combination does not take over from its methods."""


class Combined(Distiller):
    """The sum of the terms of several methods; each network runs once.

    The task loss is added once, with CE_WEIGHT of the node COMBINED. Each method keeps its own
    node and weights; WEIGHTS multiplies the terms of each. Their names are `loss_kd_<method>`.
    """

    methods: ClassVar[dict[str, type[Distiller]]] = {}
    standardizes_itself = True  # each method gets its logits as it needs them

    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels, added once", low=0.0),
        WEIGHTS=Key([], "factor of each method's terms, in order; empty: 1 each", low=0.0),
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        cfg: Any = None,
        data: DataInfo | None = None,
    ) -> None:
        super().__init__(student, teacher, cfg, data)
        self.hp = cfg.COMBINED
        self.weights = _weights(list(self.hp.WEIGHTS), list(self.methods))

        parts = [construct(each, student, teacher, cfg, data) for each in self.methods.values()]
        self.learning_rate_factors = {
            f"parts.{number}.{prefix}": factor
            for number, part in enumerate(parts)
            for prefix, factor in part.learning_rate_factors.items()
        }

        # The networks are held once, here; the parts keep their own modules.
        for part in parts:
            part.student = nn.Identity()
            part.teacher = None
        self.parts = nn.ModuleList(parts)
        self.gathers_batch = any(part.gathers_batch for part in parts)

    def losses(self, student: Output | Views, teacher: Any, batch: Batch) -> dict[str, Tensor]:
        """The terms of all methods."""
        losses = {}
        parts: Any = self.parts
        for name, weight, part in zip(self.methods, self.weights, parts, strict=True):
            own = part.merge(teacher) if isinstance(teacher, list) else teacher
            losses_of_part = part.losses(part.prepared(student), part.prepared(own), batch)
            for term, loss in losses_of_part.items():
                losses[_term_name(term, name)] = weight * loss
        return losses

    def merge(self, outputs: Sequence[Any]) -> Any:
        """Leave the outputs of several teachers apart: each method merges at its temperature."""
        return list(outputs)

    def collect(self, teacher: Any, batch: Batch) -> None:
        """Pass on to each method."""
        parts: Any = self.parts
        for part in parts:
            part.collect(teacher, batch)

    def end_collection(self) -> None:
        """Pass on to each method."""
        parts: Any = self.parts
        for part in parts:
            part.end_collection()

    def start_epoch(self, epoch: int) -> None:
        """Pass on to each method."""
        parts: Any = self.parts
        for part in parts:
            part.start_epoch(epoch)


KEYS = {f"COMBINED.{name}": key for name, key in Combined.defaults.items()}


def combine(names: Sequence[str]) -> type[Distiller]:
    """The class of several methods together.

    Args:
        names: of registered methods, as in "KD+DKD".

    Raises:
        UserError: a name is unknown or given twice, or a method cannot be combined.
    """
    entries = [METHODS.find(name) for name in names]
    methods = {entry.name: entry.value for entry in entries}
    title = SEPARATOR.join(methods)
    if len(methods) < len(names):
        raise UserError(f"DISTILLER.TYPE {SEPARATOR.join(names)} names a method twice")

    for name, method in methods.items():
        _check_combinable(name, method)

    views = {method.views for method in methods.values()}
    if len(views) > 1:
        raise UserError(f"DISTILLER.TYPE {title}: its methods use different views of an image")

    attributes = {
        "methods": methods,
        "views": views.pop(),
        "needs_teacher": any(method.needs_teacher for method in methods.values()),
        "teacher_needs": _needs(method.teacher_needs for method in methods.values()),
        "needs_index": any(method.needs_index for method in methods.values()),
        "needs_class_numbers": any(method.needs_class_numbers for method in methods.values()),
        "student_needs": _needs(method.student_needs for method in methods.values()),
        "has_loss_per_image": any(method.has_loss_per_image for method in methods.values()),
        "collects": any(method.collects for method in methods.values()),
    }
    return type(title, (Combined,), attributes)


def _needs(all_needs: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """What any of the methods reads."""
    return tuple(dict.fromkeys(need for needs in all_needs for need in needs))


def _check_combinable(name: str, method: type[Distiller]) -> None:
    if method.is_cohort:
        raise UserError(f"DISTILLER.TYPE: {name} trains several students and cannot be combined")
    if uses_published_style(method) or method.training_step is not Distiller.training_step:
        raise UserError(
            f"DISTILLER.TYPE: {name} runs the networks itself and cannot be combined; "
            "only methods that define `losses` can"
        )

    for hook in _NOT_COMBINED:
        if getattr(method, hook) is not getattr(Distiller, hook):
            raise UserError(f"DISTILLER.TYPE: {name} overrides {hook} and cannot be combined")


def _weights(given: list[float], names: list[str]) -> list[float]:
    if not given:
        return [1.0] * len(names)
    if len(given) != len(names):
        raise UserError(
            f"COMBINED.WEIGHTS has {len(given)} numbers, but {SEPARATOR.join(names)} combines "
            f"{len(names)} methods; give one for each"
        )
    return given


def _term_name(term: str, method: str) -> str:
    """loss_kd -> loss_kd_DKD, loss_kd_inter -> loss_kd_DKD_inter."""
    return f"loss_kd_{method}{term.removeprefix('loss_kd')}"
