"""Distillation through attention: a token of the student learns from the teacher alone.

H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jegou, "Training data-efficient image
transformers & distillation through attention", ICML 2021, arXiv:2012.12877.
"""

from typing import Any

from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import log_softmax, reduced
from edkd.distillers.kd import kd_loss
from edkd.errors import UserError
from edkd.hints import not_one_of
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

FORMS = ("hard", "soft")


def deit_loss(
    logits_dist: Tensor,
    logits_teacher: Tensor,
    form: str = "hard",
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """mean_i CE(z_d, argmax_c z_t) in the form hard, T^2 mean_i KL(p_t || p_d) in the form soft.

    z_d are the logits of the distillation token, p = softmax(z / T). Equations 3 and 2.

    Differs from the published code: "soft" there is divided by N * C instead of N, and so is C
    times weaker.

    Args:
        logits_dist: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C); "hard" takes the first of several largest ones.
        form: "hard" or "soft".
        temperature: T > 0; "hard" ignores it.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); "soft" is 0 where both predictions agree.

    Raises:
        UserError: another value of `form`.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[3.0, 1.0, 0.0]])
        >>> round(deit_loss(torch.zeros(1, 3), teacher).item(), 4)  # log(3)
        1.0986
    """
    if form not in FORMS:
        raise UserError(f"deit_loss: {not_one_of('form', form, FORMS)}")
    if form == "soft":
        return kd_loss(logits_dist, logits_teacher, temperature, reduction)

    decision = logits_teacher.argmax(1, keepdim=True)
    loss = -log_softmax(logits_dist).gather(1, decision).squeeze(1)
    return reduced(loss, reduction)


@METHODS.register("DEIT")
class DEIT(Distiller):
    """(1 - ALPHA) * CE(class token, target) + ALPHA * deit_loss(distillation token, teacher).

    The student predicts with the mean of the logits of both tokens. In training, its logits are
    those of the class token, which LSKD, EAKD and the training accuracy see.
    """

    student_needs = ("logits", "logits_dist")
    has_loss_per_image = True
    defaults = dict(
        FORM=Key(
            "hard", "the teacher's decision as a label, or its soft prediction", choices=FORMS
        ),
        ALPHA=Key(
            0.5,
            "weight of the distillation term; the cross-entropy with the labels has the rest",
            low=0.0,
            high=1.0,
            includes_high=True,
        ),
        T=Key(1.0, "softens both predictions in the form soft", low=1e-3),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        enable = getattr(student, "set_distilled_training", None)
        if enable is None:
            own = getattr(student, "module", student)
            raise UserError(
                f"DEIT needs a student with a distillation token, which {type(own).__name__} does "
                "not have; set DISTILLER.STUDENT to timm/deit_tiny_distilled_patch16_224, another "
                "of timm's models with 'distilled' in its name, or cifar/deit_tiny_p4"
            )
        enable(True)

    def train(self, mode: bool = True) -> "DEIT":
        """As `Distiller.train`; if only the heads learn, the student still returns both outputs."""
        super().train(mode)
        for module in self.student.modules():
            if hasattr(module, "distilled_training"):
                module.training = mode
        return self

    def task_weight(self) -> float:
        """See `Distiller.task_weight`."""
        return 1.0 - self.hp.ALPHA

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        logits_dist = self.standardized(student.features["logits_dist"])
        loss_deit = deit_loss(
            logits_dist,
            teacher.logits,
            self.hp.FORM,
            self.hp.T,
            self.reduction,
        )
        return {"loss_kd": self.hp.ALPHA * loss_deit}
