"""One-for-all distillation between architectures: stages of the student, compared as logits.

Z. Hao, J. Guo, K. Han, Y. Tang, H. Hu, Y. Wang, C. Xu, "One-for-All: Bridge the Gap Between
Heterogeneous Architectures in Knowledge Distillation", NeurIPS 2023, arXiv:2310.19444.
"""

from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._features import FeatureShapes
from edkd.distillers._math import log_softmax, reduced
from edkd.distillers._stage_heads import STAGES, TokenHead, map_head
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def ofakd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    eps: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """-mean_i sum_c ((p_t + 1_y)^eps - 1_y) log p_s with p = softmax(z / T).

    1_y is 1 for the target class and 0 for the others. With eps 1 this is the cross-entropy with
    p_t; a larger eps enhances the target class where the teacher is confident.

    Differs from the published code: log p_s there is log(softmax(z)), which makes the gradient NaN
    at a margin of 120; here it is finite for logits up to +-1e4.

    Args:
        logits_student: (N,C); computed in float32 or better.
        logits_teacher: (N,C).
        target: (N,), class numbers; (N,C), class probabilities, of which the largest counts.
        eps: exponent >= 1.
        temperature: T > 0; as in the published code, the loss is not multiplied by T^2.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); where both predictions agree, it is not 0.

    Example:
        >>> logits = torch.zeros(1, 2)
        >>> loss = ofakd_loss(logits, logits, torch.tensor([0]), eps=2.0)
        >>> round(loss.item(), 4)  # (1.5^2 - 1 + 0.5^2) log(2)
        1.0397
    """
    classes = target.argmax(1) if target.dim() > 1 else target
    log_p_s = log_softmax(logits_student, temperature)
    p_t = log_softmax(logits_teacher, temperature).exp()
    numbers = torch.arange(p_t.shape[1], device=classes.device)
    of_target = (numbers == classes[:, None]).to(p_t.dtype)

    enhanced = (p_t + of_target) ** eps - of_target
    return reduced(-(enhanced * log_p_s).sum(1), reduction)


@METHODS.register("OFAKD")
class OFAKD(Distiller):
    """CE_WEIGHT * CE + KD_WEIGHT * ofakd_loss(student) + STAGE_WEIGHT * sum_s ofakd_loss(head_s).

    head_s maps stage s of the student to logits: separable convolutions for feature maps, blocks of
    a ViT for the tokens of a transformer. The student's last four stages are 1 to 4. The heads are
    used in training only.

    Differs from the published code: a stage is one of `Output.features`, for any network, where the
    code has a table of architectures; attention in the heads has biases, as in a ViT.
    """

    student_needs = ("logits", "feats")
    has_loss_per_image = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        KD_WEIGHT=Key(1.0, "weight of the term of the student's own logits", low=0.0),
        STAGE_WEIGHT=Key(1.0, "weight of the sum of the terms of the stages", low=0.0),
        STAGES=Key(
            [1, 2, 3, 4], "stages of the student that have a head; 4 is the last", low=1, high=5
        ),
        EPS=Key(
            [1.0],
            "exponent that enhances the target class: one for all terms, or one for each of STAGES "
            "and the last for the student's own logits",
            low=1.0,
        ),
        T=Key(1.0, "softens both predictions", low=1e-3),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        self.stages = list(self.hp.STAGES)
        self.exponents = _exponents(list(self.hp.EPS), len(self.stages))

        shapes = self.feature_shapes(student)
        _check_stages(self.stages, len(shapes.feats), student)
        self.features_key = "tokens" if shapes.tokens else "feats"
        self.stage_heads = nn.ModuleList(self._head(stage, shapes) for stage in self.stages)

    def _head(self, stage: int, shapes: FeatureShapes) -> nn.Module:
        """The head of a stage; its width is the published one."""
        number = self.facts().num_classes
        _, channels, height, width = shapes.feats[_position(stage)]
        dim = shapes.pooled_feat[1]
        if shapes.tokens:
            return TokenHead(stage, channels, (height, width), dim, number)

        dims = [self.feature_shapes(each).pooled_feat[1] for each in self.teachers()]
        return map_head(stage, channels, max(dim, *dims), number)

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        outputs = student.features[self.features_key]
        heads = zip(self.stages, self.stage_heads, self.exponents, strict=False)
        of_stages = []
        for stage, head, eps in heads:
            logits = self.standardized(head(outputs[_position(stage)]))
            of_stages.append(self._loss(logits, teacher, batch, eps))

        loss_kd = self._loss(student.logits, teacher, batch, self.exponents[-1])
        return {
            "loss_kd": self.hp.KD_WEIGHT * loss_kd,
            "loss_kd_stages": self.hp.STAGE_WEIGHT * torch.stack(of_stages).sum(0),
        }

    def _loss(self, logits: Tensor, teacher: Output, batch: Batch, eps: float) -> Tensor:
        return ofakd_loss(
            logits,
            teacher.logits,
            batch.target,
            eps,
            self.hp.T,
            self.reduction,
        )


def _position(stage: int) -> int:
    """The place of a stage in `feats`, from the end."""
    return stage - STAGES - 1


def _exponents(given: list[float], stages: int) -> list[float]:
    """An exponent for each stage, and one for the student's own logits."""
    if len(given) == 1:
        return given * (stages + 1)
    if len(given) != stages + 1:
        raise UserError(
            f"OFAKD.EPS has {len(given)} numbers, but OFAKD.STAGES has {stages}; give one number, "
            f"or {stages + 1}: one for each stage and the last for the student's own logits"
        )
    return given


def _check_stages(stages: list[int], number: int, student: nn.Module) -> None:
    """Raise UserError where the student does not have the stages."""
    known = list(range(max(1, STAGES + 1 - number), STAGES + 1))
    if stages and set(stages) <= set(known):
        return
    name = type(getattr(student, "module", student)).__name__
    raise UserError(
        f"OFAKD.STAGES is {stages}, but the stages of {name} are {known}, counted so that 4 is its "
        f"last one; set OFAKD.STAGES {str(known).replace(' ', '')}"
    )
