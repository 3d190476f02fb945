"""The contract of a distillation method."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edkd.distillers._contract import (
    accepted_arguments,
    check_losses,
    check_not_empty,
)
from edkd.distillers._features import FeatureShapes, feature_shapes
from edkd.distillers._groups import as_groups, owner_of
from edkd.distillers._head import Heads, classifier_of
from edkd.distillers._layout import contiguous_features, contiguous_output
from edkd.distillers._math import mean_prediction
from edkd.distillers._split import Split
from edkd.distillers._switches import (
    Switches,
    others_of_class,
    standardize,
    taken_from,
    weighted_means,
    with_standardized,
)
from edkd.distillers._task import task_loss_of
from edkd.distillers._whole_batch import whole_batch
from edkd.errors import UserError
from edkd.registry import METHODS, PublishedDict, place
from edkd.types import Batch, DataInfo, LazyFeatures, Output

Views = Mapping[str, Output]
"""Outputs by the name of the view, for methods with several `views`."""


class Distiller(nn.Module):
    """A student that learns, and a frozen teacher that is never changed.

    A method overrides `losses`, which runs neither network. The base class runs each network once
    and adds the task loss. A method in the published style overrides `forward_train` instead, and
    runs the networks itself.

    Args:
        student: `forward(x: (N,3,H,W)) -> (logits (N,C), features)`; trained.
        teacher: the same contract, or an `nn.ModuleList` of several teachers; put into eval mode
            without gradients. None for a method without a teacher.
        cfg: the configuration; `self.hp` is the method's own node.
        data: facts about the training set.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    """Hyper-parameters: `Key`s or plain values. They become the method's configuration node."""
    needs_teacher: ClassVar[bool] = True
    teacher_needs: tuple[str, ...] = ("logits",)
    """What `losses` reads of the teacher: logits, pooled_feat, feats, preact_feats.

    The teacher cache serves the first two. `set_up` may set this by the networks.
    """
    student_needs: ClassVar[tuple[str, ...]] = ("logits",)
    """The same for the student; its features are checked before training."""
    views: ClassVar[tuple[str, ...]] = ("weak",)
    """Names of the augmented views of each image that `losses` reads."""
    needs_index: ClassVar[bool] = False
    """Whether `losses` reads `batch.index`."""
    needs_class_numbers: ClassVar[bool] = False
    """Whether `losses` needs the class of each image, and cannot use class probabilities."""
    has_loss_per_image: ClassVar[bool] = False
    """Whether `losses` returns terms (N,) where `self.reduction` is "none"."""
    standardizes_itself: ClassVar[bool] = False
    """Whether `losses` gets logits as they are, and standardises them with `standardized`."""
    can_split: ClassVar[bool] = False
    """Whether `losses` returns loss_kd_target and loss_kd_other where `self.split` is given."""
    collects: ClassVar[bool] = False
    """Whether `collect` sees the teacher's outputs for all training images before training."""
    is_cohort: ClassVar[bool] = False
    """Whether `student` is an `nn.ModuleList` of the networks that `student_names` lists."""
    min_students: ClassVar[int] = 1

    gathers_batch: bool = False
    """Whether the loss relates the images of a batch to one another, as it is configured."""
    turns: int = 1
    """Updates for one batch; before each, the losses are computed anew with `batch.turn`."""
    learning_rate_factors: Mapping[str, float] = {}
    """Factor of the learning rate of a child's parameters, by its name, as {"project": 10.0}."""
    heads: Heads | None = None
    """Of the students, where SOLVER trains them differently from the rest."""
    switches: Switches = Switches()
    reduction: str = "mean"
    """How `losses` reduces its terms over the images: "mean"; or "none", as EAKD needs it."""
    split: Split | None = None
    """How the distillation loss is split, where the update rule needs its parts."""
    notes: Sequence[str] = ()
    """Lines about its networks, for the log."""
    student: nn.Module
    teacher: Any

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        cfg: Any = None,
        data: DataInfo | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.data = data
        self.hp = own_node(type(self), cfg)
        self.teacher_weights = cfg.DISTILLER.TEACHER_WEIGHTS if cfg is not None else []
        self.task_criterion = task_loss_of(cfg)
        self.cached_teachers: dict[int, Any] = {}

        self._frozen = tuple(_teachers(teacher))
        for network in self._frozen:
            network.eval().requires_grad_(False)
        if cfg is not None:
            self.set_up(student, teacher, cfg)

    # What a method defines.

    def set_up(self, student: Any, teacher: Any, cfg: Any) -> None:
        """Make what the method has besides the networks: modules, buffers, parameters.

        Called at the end of the constructor, if that is given a configuration.

        Args:
            student: the network, or the `nn.ModuleList` of a cohort.
            teacher: the network, or an `nn.ModuleList` of several; None for a method without one.
            cfg: the whole configuration; `self.hp` is the method's own node.

        Raises:
            UserError: the method cannot use these networks or this configuration.
        """

    def losses(self, student: Any, teacher: Any, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss besides the task loss, weighted; their sum is minimised.

        Args:
            student: its Output for the batch; with several `views`, Outputs by name.
            teacher: the same, without gradients; None for a method without a teacher.
            batch: images, targets, indices and the epoch.

        Returns:
            Scalars by name; names begin with "loss_kd". Where `self.reduction` is "none", a method
            with `has_loss_per_image` returns (N,) instead, of which the scalar is the mean.
        """
        raise NotImplementedError(f"{type(self).__name__} must define losses or forward_train")

    def collect(self, teacher: Any, batch: Batch) -> None:
        """Gather statistics of the teacher's outputs, if the method `collects`.

        Called before the first step, once for each batch of the first epoch. What is gathered
        belongs in buffers, so that a resumed run has it.

        Args:
            teacher: its Output for the batch; with several `views`, Outputs by name.
        """

    def end_collection(self) -> None:
        """Called after the last `collect`."""

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch, from 1, for methods that train in stages."""

    def deployable(self) -> nn.Module:
        """The network that is evaluated, saved as `student_*` and exported."""
        return self.student

    # What the engine calls.

    def training_step(self, batch: Batch, turn: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """One forward pass of training.

        Args:
            turn: number of the update of this batch, from 0; see `turns`.

        Returns:
            The student's logits (N,C), and the weighted terms of the loss by name.
        """
        if uses_published_style(type(self)):
            with contiguous_features(networks_of(self)):
                return self.forward_train(**self._published_arguments(batch, turn))

        student = self.run_student(batch)
        teacher = self.run_teachers(batch) if self.needs_teacher else None
        logits = _outputs(student)[0].logits
        with whole_batch(self, student, teacher, batch) as whole:
            return logits, self._all_terms(*whole)

    def _all_terms(self, student: Any, teacher: Any, batch: Batch) -> dict[str, Tensor]:
        """The task loss and the terms of `losses`."""
        if self.switches.shuffles:
            teacher = taken_from(teacher, others_of_class(batch.target))

        each = [self.task_loss(output.logits, batch.target) for output in _outputs(student)]
        terms = self._terms(student, teacher, batch)
        if self.needs_teacher:
            check_not_empty(type(self), terms)
        return {"loss_ce": torch.stack(each).sum()} | terms

    def relates_images(self) -> bool:
        """Whether the losses need the whole batch: by the method itself, or by a switch."""
        return self.gathers_batch or self.switches.shuffles

    def _terms(self, student: Any, teacher: Any, batch: Batch) -> dict[str, Tensor]:
        """The scalars of `losses`, with the switches of DISTILLER."""
        terms = self.losses(self.prepared(student), self.prepared(teacher), batch)
        check_losses(type(self), terms, only_scalars=not self.switches.eakd)
        if self.switches.eakd:
            terms = weighted_means(terms, student, teacher, self.switches.temperature)
        return terms

    def prepared(self, outputs: Any) -> Any:
        """Outputs as `losses` gets them: with standardised logits if DISTILLER.LSKD is set."""
        if not self.switches.lskd or self.standardizes_itself:
            return outputs
        return with_standardized(outputs)

    def _published_arguments(self, batch: Batch, turn: int) -> dict[str, Any]:
        """Those arguments of `forward_train` that the method's own takes."""
        arguments: dict[str, Any] = {"image": batch.image, "target": batch.target}
        arguments |= {"index": batch.index, "epoch": batch.epoch}
        if self.turns > 1:
            arguments["turn"] = turn

        accepted = accepted_arguments(type(self).forward_train)
        if accepted is None:
            return arguments
        return {name: value for name, value in arguments.items() if name in accepted}

    def run_student(self, batch: Batch) -> Output | Views:
        """The student's output for the batch, or its outputs for each view."""
        if len(self.views) == 1:
            return contiguous_output(self.student(batch.image))
        return {
            name: contiguous_output(self.student(batch.views[name].image)) for name in self.views
        }

    @torch.no_grad()
    def run_teachers(self, batch: Batch) -> Output | Views:
        """The teacher's output for the batch, from the cache where there is one.

        Of several teachers the output is their mean prediction, see `mean_prediction`.
        """
        outputs = [self._run_teacher(number, batch) for number in range(len(self._frozen))]
        if len(outputs) == 1:
            return outputs[0]
        return self.merge(outputs)

    def _run_teacher(self, number: int, batch: Batch) -> Output | Views:
        teacher = self.cached_teachers.get(number, self._frozen[number])
        if len(self.views) == 1:
            return contiguous_output(teacher(batch.image))
        return {name: contiguous_output(teacher(batch.views[name].image)) for name in self.views}

    def merge(self, outputs: Sequence[Any]) -> Any:
        """The mean prediction of several teachers, softened by the method's temperature."""
        if isinstance(outputs[0], Mapping):
            return {name: self.merge([views[name] for views in outputs]) for name in self.views}

        weights = self.teacher_weights or [1.0] * len(outputs)
        logits = mean_prediction(
            [output.logits for output in outputs], list(weights), self.softening()
        )
        return Output(logits, LazyFeatures(_no_common_features))

    def task_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """CE_WEIGHT times the loss with the labels that SOLVER names, a scalar."""
        return self.task_weight() * self.task_criterion(logits, target)

    # Not properties: methods in the published style set attributes of these names.

    def task_weight(self) -> float:
        """CE_WEIGHT of the method's node, or of its LOSS; 1 where it has none."""
        node = self.hp if self.hp is not None else {}
        return node.get("CE_WEIGHT", node.get("LOSS", {}).get("CE_WEIGHT", 1.0))

    def softening(self) -> float:
        """T or TEMPERATURE of the method's node; 1 where it has none."""
        node = self.hp if self.hp is not None else {}
        return node.get("T", node.get("TEMPERATURE", 1.0))

    # The published interface.

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One forward pass of training, in the published interface.

        Args:
            image: (N,3,H,W), normalised.
            target: (N,), class numbers.
            kwargs: `epoch` (from 1; in a captured step a tensor without dimensions) and `index`
                (N,) of the images in the training set.

        Returns:
            The student's logits (N,C), and the weighted terms of the loss by name.
        """
        turn = kwargs.pop("turn", 0)
        return self.training_step(Batch(image, target, **kwargs), turn)

    def forward_test(self, image: Tensor) -> Tensor:
        """Logits (N,C) for images (N,3,H,W)."""
        return self.deployable()(image)[0]

    def forward(self, **kwargs: Any) -> Any:
        """`forward_train` in training mode, `forward_test` otherwise."""
        if self.training:
            return self.forward_train(**kwargs)
        return self.forward_test(kwargs["image"])

    def get_learnable_parameters(self) -> list[Any]:
        """What the optimizer updates: all parameters outside the teacher.

        A method may return parameter groups instead, as torch's optimizers take them.
        """
        return [parameter for _, parameter in self._learnable()]

    def get_extra_parameters(self) -> int:
        """Number of parameters that training needs beyond the student's."""
        of_student = {id(parameter) for parameter in self.student.parameters()}
        extra = [p for _, p in self._learnable() if id(p) not in of_student]
        return sum(parameter.numel() for parameter in extra)

    # Networks and their state.

    def teachers(self) -> tuple[nn.Module, ...]:
        """The teachers, in the order of DISTILLER.TEACHER."""
        return self._frozen

    @classmethod
    def student_names(cls, cfg: Any) -> list[str]:
        """The architectures that are trained."""
        return [cfg.DISTILLER.STUDENT]

    def students(self) -> dict[str, nn.Module]:
        """The networks that are evaluated and saved, by name."""
        return {"student": self.deployable()}

    def architectures(self, cfg: Any) -> list[str]:
        """The names from which `get_model` builds `students` again, kept in their files."""
        return self.student_names(cfg)

    def standardized(self, logits: Tensor) -> Tensor:
        """Logits that a method computes itself, (N,C), standardised if DISTILLER.LSKD is set.

        Those of the Outputs that `losses` gets are standardised already, unless the method
        `standardizes_itself`.
        """
        return standardize(logits) if self.switches.lskd else logits

    def classifier(self, network: nn.Module) -> nn.Linear:
        """The last linear layer of a network, which maps `pooled_feat` (N,D) to logits (N,C).

        Keep it in a tuple, as a module that is assigned becomes a child of the method.

        Raises:
            UserError: the network has none.
        """
        return classifier_of(network, self.facts().num_classes, type(self).__name__)

    def feature_shapes(self, network: nn.Module) -> FeatureShapes:
        """Shapes of a network's features for one image, found without computing anything."""
        return feature_shapes(network, self.facts().image_shape)

    def facts(self) -> DataInfo:
        """About the training set; UserError where the method was made without them."""
        if self.data is None:
            raise UserError(
                f"{type(self).__name__} needs facts about the training set; give it `data`"
            )
        return self.data

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, see `as_groups`.

        No parameter is in two groups, and none is a teacher's.
        """
        return self._groups_by_factor(self.get_learnable_parameters())

    def _groups_by_factor(self, given: Any) -> list[dict[str, Any]]:
        """Groups; parameters outside of groups are grouped by `learning_rate_factors`."""
        owner = owner_of(self, self._frozen)
        groups = as_groups(owner, given)
        if len(groups) > 1 or len(groups[0]) > 1:
            return groups

        by_factor: dict[float, list[Tensor]] = {}
        for parameter in groups[0]["params"]:
            factor = self._learning_rate_factor(owner.names[id(parameter)])
            by_factor.setdefault(factor, []).append(parameter)
        return [{"params": params, "lr_factor": factor} for factor, params in by_factor.items()]

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without the teachers' part, under whatever name they are held."""
        frozen = {id(module) for teacher in self._frozen for module in teacher.modules()}
        held = self.named_modules(remove_duplicate=False)
        prefixes = tuple(f"{name}." for name, module in held if id(module) in frozen)
        state = self.state_dict()
        return {key: value for key, value in state.items() if not key.startswith(prefixes)}

    def train(self, mode: bool = True) -> "Distiller":
        """As `nn.Module.train`, but what does not learn stays in eval mode."""
        super().train(mode)
        for network in (*self._frozen, *(self.heads.fixed if self.heads else ())):
            network.eval()
        return self

    def _learning_rate_factor(self, name: str) -> float:
        for prefix, factor in self.learning_rate_factors.items():
            if f"{name}.".startswith(f"{prefix}."):
                return factor
        return 1.0

    def _learnable(self) -> list[tuple[str, nn.Parameter]]:
        frozen = {id(p) for teacher in self._frozen for p in teacher.parameters()}
        return [
            (name, parameter)
            for name, parameter in self.named_parameters()
            if id(parameter) not in frozen
        ]


def uses_published_style(cls: type[Distiller]) -> bool:
    """Whether a method runs the networks itself, in `forward_train`."""
    return cls.forward_train is not Distiller.forward_train


# Functions, not methods: a method in the published style may keep modules under any name.


def students_of(distiller: Distiller) -> list[nn.Module]:
    """The networks that learn."""
    student: Any = distiller.student
    return list(student) if distiller.is_cohort else [student]


def networks_of(distiller: Distiller) -> list[nn.Module]:
    """The students and the teachers."""
    return [*students_of(distiller), *distiller.teachers()]


def own_node(cls: type[Distiller], cfg: Any) -> Any:
    """The configuration node of a method; None where it has none."""
    for entry in METHODS.entries():
        if entry.value is cls and cfg is not None and entry.name in cfg:
            return cfg[entry.name]
    return None


def _outputs(student: Any) -> list[Output]:
    """The Outputs of a student, one for each view."""
    return list(student.values()) if isinstance(student, Mapping) else [student]


def _teachers(teacher: nn.Module | None) -> Sequence[nn.Module]:
    if teacher is None:
        return []
    return list(teacher) if isinstance(teacher, nn.ModuleList) else [teacher]


def _no_common_features() -> Mapping[str, Any]:
    raise UserError("several teachers have no common features; name one DISTILLER.TEACHER")


def _check_method(name: str, cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Distiller)):
        raise UserError(f"method {name!r} of {place(cls)} must be a class derived from Distiller")

    defines_losses = cls.losses is not Distiller.losses
    own_step = cls.training_step is not Distiller.training_step
    if not (defines_losses or own_step or uses_published_style(cls)):
        raise UserError(
            f"method {name!r} of {place(cls)} must be a Distiller that defines losses "
            "or forward_train"
        )


METHODS.check = _check_method
register = METHODS.register

distiller_dict = PublishedDict(METHODS)
"""DISTILLER.TYPE -> class, under the published name."""
