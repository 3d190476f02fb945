"""FitNets: the student predicts a feature map of the teacher, the hint.

A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep
Nets", ICLR 2015, arXiv:1412.6550.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._combined import SEPARATOR
from edkd.distillers._common import ConvReg, Shape
from edkd.distillers._math import at_least_float32
from edkd.distillers._stages import check_input_size, check_stages, pooled_to
from edkd.distillers.kd import kd_loss
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def fitnet_loss(feature_student: Tensor, feature_teacher: Tensor) -> Tensor:
    """mean((r - u)^2) over all entries, with r the regressed map, u the hint (equation 3).

    Differs from the paper: the mean over images and entries instead of half the sum over entries,
    as in the published code.

    Args:
        feature_student: (N,D,H,W), after the regressor; computed in float32 or better.
        feature_teacher: (N,D,H,W).

    Returns:
        A scalar >= 0; 0 where both are equal.

    Example:
        >>> hint = torch.ones(2, 3, 4, 4)
        >>> fitnet_loss(hint + 2, hint).item()
        4.0
    """
    return F.mse_loss(at_least_float32(feature_student), at_least_float32(feature_teacher))


@METHODS.register("FITNET")
class FitNet(Distiller):
    """CE_WEIGHT * CE + FEAT_WEIGHT * fitnet_loss(regressor(student), teacher), in one stage.

    With HINT_EPOCHS, two stages, as in the paper. In the first, the hint alone trains the regressor
    and the student up to the hint layer; the weights above do not change. In the second, there is
    no hint: CE and, with KD_WEIGHT, the divergence from the teacher's logits train the student.

    Differs from the paper: by default one stage, as in the published code; KD_WEIGHT is constant,
    where the paper lowers it from 4 to 1; the learning rate follows SOLVER through both stages.

    A teacher's map that is larger than the student's, and not twice as large, is average-pooled to
    the size of the student's.
    """

    teacher_needs = ("logits", "feats")
    student_needs = ("logits", "feats")
    defaults = dict(
        HINT_LAYER=Key(2, "entry of `feats` that is compared; 0 is the stem", low=0),
        INPUT_SIZE=Key((), "height and width of an image; empty: those of the data"),
        HINT_EPOCHS=Key(0, "first epochs, with the hint alone; 0: one stage", "epochs", low=0),
        TEMPERATURE=Key(3.0, "softens both predictions for KD_WEIGHT", source="Romero", low=1e-3),
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(100.0, "weight of the hint", low=0.0),
            KD_WEIGHT=Key(0.0, "weight of the divergence from the teacher's logits", low=0.0),
        ),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        shape_student = self._shape_of_hint("student", student)
        shape_teacher = self._shape_of_hint("teacher", teacher)
        _check_switch(self.hp.LOSS.KD_WEIGHT, cfg)
        data = self.facts()
        check_input_size("FITNET.INPUT_SIZE", self.hp.INPUT_SIZE, data.image_shape)

        # A regressor enlarges maps to twice their size; the hint is pooled to what it gives.
        if shape_teacher[2] > shape_student[2] and shape_teacher[2] != 2 * shape_student[2]:
            shape_teacher = (*shape_teacher[:2], *shape_student[2:])
        self.conv_reg = ConvReg(shape_student, shape_teacher)

        # The state of the first epoch; `start_epoch` changes it.
        self.is_hint_alone = self.hp.HINT_EPOCHS > 0
        self.above_hint: tuple[nn.Parameter, ...] = ()
        if self.is_hint_alone:
            _check_stages_of_training(self.hp.HINT_EPOCHS, cfg)
            self.above_hint = self._parameters_above_hint(data.image_shape)

    def start_epoch(self, epoch: int) -> None:
        """Begin or end the stage of the hint; in it, the layers above the hint are fixed."""
        self.is_hint_alone = epoch <= self.hp.HINT_EPOCHS
        for parameter in self.above_hint:
            parameter.requires_grad_(not self.is_hint_alone)

    def task_weight(self) -> float:
        """CE_WEIGHT; 0 in the stage of the hint."""
        return 0.0 if self.is_hint_alone else super().task_weight()

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        weights = self.hp.LOSS
        has_second_stage = self.hp.HINT_EPOCHS > 0

        # A term that is off depends on the student all the same, as update rules expect it.
        nothing = 0.0 * at_least_float32(student.logits).sum()
        terms = {"loss_kd": nothing}

        if self.is_hint_alone or not has_second_stage:
            feature_student = student.features["feats"][self.hp.HINT_LAYER]
            feature_teacher = teacher.features["feats"][self.hp.HINT_LAYER]
            regressed = self.conv_reg(feature_student)
            hint = pooled_to(feature_teacher, (regressed.shape[2], regressed.shape[3]))
            loss_hint = fitnet_loss(regressed, hint)
            terms["loss_kd"] = weights.FEAT_WEIGHT * loss_hint

        if weights.KD_WEIGHT and self.is_hint_alone:
            terms["loss_kd_logits"] = nothing
        elif weights.KD_WEIGHT:
            loss_kd = kd_loss(student.logits, teacher.logits, self.hp.TEMPERATURE)
            terms["loss_kd_logits"] = weights.KD_WEIGHT * loss_kd
        return terms

    def _shape_of_hint(self, role: str, network: nn.Module) -> Shape:
        shapes = self.feature_shapes(network)
        check_stages("FITNET", role, shapes)
        layer = self.hp.HINT_LAYER
        number = len(shapes.feats)
        if layer >= number:
            raise UserError(
                f"FITNET.HINT_LAYER is {layer}, but the {role} has {number} feature maps, numbered "
                f"from 0; set a number below {number}"
            )
        return shapes.feats[layer]

    def _parameters_above_hint(self, image_shape: Shape) -> tuple[nn.Parameter, ...]:
        """The student's parameters that the hint does not depend on."""
        mode = self.student.training
        trained = [each for each in self.student.parameters() if each.requires_grad]
        image = torch.zeros(1, *image_shape, device=trained[0].device, dtype=trained[0].dtype)

        # In evaluation mode, no statistics change.
        self.student.eval()
        _, features = self.student(image)
        self.student.train(mode)

        gradients = torch.autograd.grad(
            features["feats"][self.hp.HINT_LAYER].sum(), trained, allow_unused=True
        )
        pairs = zip(trained, gradients, strict=True)
        return tuple(parameter for parameter, gradient in pairs if gradient is None)


def _check_stages_of_training(hint_epochs: int, cfg: Any) -> None:
    """Raise UserError where two stages are impossible: with other methods, or no epochs left."""
    if SEPARATOR in cfg.DISTILLER.TYPE:
        raise UserError(
            f"FITNET.HINT_EPOCHS needs epochs without other losses, which DISTILLER.TYPE "
            f"{cfg.DISTILLER.TYPE} does not have; set it to 0, or use FITNET alone with "
            "FITNET.LOSS.KD_WEIGHT"
        )
    if hint_epochs >= cfg.SOLVER.EPOCHS:
        raise UserError(
            f"FITNET.HINT_EPOCHS is {hint_epochs}, which leaves none of SOLVER.EPOCHS "
            f"{cfg.SOLVER.EPOCHS} for the labels; set a smaller number"
        )
    if cfg.SOLVER.TRAIN_ONLY != "all":
        raise UserError(
            f"FITNET.HINT_EPOCHS trains the layers up to the hint, which SOLVER.TRAIN_ONLY "
            f"{cfg.SOLVER.TRAIN_ONLY} fixes; set it to 0, or SOLVER.TRAIN_ONLY to all"
        )


def _check_switch(kd_weight: float, cfg: Any) -> None:
    """Raise UserError where DISTILLER.LSKD is set and no logits are compared."""
    is_alone = SEPARATOR not in cfg.DISTILLER.TYPE
    if cfg.DISTILLER.LSKD and is_alone and not kd_weight:
        raise UserError(
            "DISTILLER.LSKD has no effect on FITNET without FITNET.LOSS.KD_WEIGHT; set it to "
            "False, or that weight above 0"
        )
