"""The contract of a distillation method, and the registry that a method enters."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from edkd.errors import UserError

D = TypeVar("D", bound=type["Distiller"])

distiller_dict: dict[str, type["Distiller"]] = {}
"""DISTILLER.TYPE -> class."""


def register(name: str) -> Callable[[D], D]:
    """Class decorator: enter a method into `distiller_dict` under `name`; its `defaults` become `CFG.<name>`.

    Raises UserError where another class holds that name, or the class is no Distiller with a `forward_train`.
    """

    def enter(cls: D) -> D:
        if not issubclass(cls, Distiller) or cls.forward_train is Distiller.forward_train:
            raise UserError(f"method {name!r} of {place(cls)} must be a Distiller that defines forward_train")
        held = distiller_dict.setdefault(name, cls)
        if (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"method {name!r} of {place(cls)} is already registered by {place(held)}; rename one of them"
            )
        distiller_dict[name] = cls
        return cls

    return enter


def place(cls: type) -> str:
    """The file that defines a class, for messages."""
    return inspect.getsourcefile(cls) or cls.__module__


class Distiller(nn.Module):
    """A student that learns, and a frozen teacher that is never changed.

    Args:
        student: `forward(x: (N,3,H,W)) -> (logits (N,C), features)`; trained.
        teacher: the same contract; put into eval mode for good, without gradients. None for a method without one.
        cfg: the configuration, of which a method reads its own node.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    """Hyper-parameters and their defaults; becomes the method's node of the configuration.

    What bears a usual name has its usual range: T and TEMPERATURE > 0; ALPHA, BETA, WARMUP and ..._WEIGHT >= 0.
    """
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    """The words that a hyper-parameter can be, where it is one of a few."""
    needs_teacher: ClassVar[bool] = True
    is_cohort: ClassVar[bool] = False
    """Whether `student` is an `nn.ModuleList` of those that `student_names` lists."""
    min_students: ClassVar[int] = 1
    """The least number of them."""
    turns: int = 1
    """Updates that a batch makes; `forward_train` is called for each with `turn`, from 0."""
    student: nn.Module
    teacher: Any

    def __init__(self, student: nn.Module, teacher: nn.Module | None = None, cfg: Any = None) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        if teacher is not None:
            teacher.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Distiller":
        """As `nn.Module.train`, but the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @classmethod
    def student_names(cls, cfg: Any) -> list[str]:
        """The architectures that are trained."""
        return [cfg.DISTILLER.STUDENT]

    def students(self) -> dict[str, nn.Module]:
        """The networks that are evaluated and saved, by name."""
        return {"student": self.student}

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """What the optimizer updates; a method with modules of its own adds theirs."""
        return list(self.student.parameters())

    def get_extra_parameters(self) -> int:
        """Number of parameters that a method needs in training beside the student's."""
        return 0

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """One training pass.

        Args:
            image: (N,3,H,W), normalised.
            target: (N,), class numbers.
            kwargs: `epoch` (from 1; in a captured step a tensor without dimensions), `index` (N,) of the images in
                the training set.

        Returns:
            The student's logits (N,C), and the terms of the loss by name, weighted: their sum is minimised.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward_train")

    def forward_test(self, image: Tensor) -> Tensor:
        """The student's logits (N,C) for images (N,3,H,W)."""
        return self.student(image)[0]

    def forward(self, **kwargs: Any) -> Any:
        """`forward_train` in training mode, `forward_test` otherwise."""
        return self.forward_train(**kwargs) if self.training else self.forward_test(kwargs["image"])

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without the teacher's part."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("teacher.")}
