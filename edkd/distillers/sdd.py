"""Scale decoupled distillation: a loss of logits, applied to parts of the image.

S. Wei, C. Luo, Y. Luo, "Scaled Decoupled Distillation", CVPR 2024, arXiv:2403.13512.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._cells import cell_logits, check_cells
from edkd.distillers._math import check_class_numbers, reduced, warmup_factor
from edkd.distillers._pooled_map import last_map
from edkd.distillers.dkd import dkd_loss
from edkd.distillers.kd import kd_loss
from edkd.distillers.nkd import nkd_loss
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

BASES = ("kd", "dkd", "nkd")

Base = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits of the student and of the teacher (N,C) and targets (N,) -> the loss of each, (N,)."""


def sdd_loss(
    cells_student: Tensor,
    cells_teacher: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    base: Base,
    complementary: float,
    reduction: str = "mean",
) -> Tensor:
    """mean_i mean_k w_ik * base(z_s_ik, z_t_ik), over the images i and their cells k.

    w_ik is `complementary` where the teacher is right about the image and wrong about the cell, or
    the reverse; otherwise 1 (equations 5 to 7).

    Differs from the paper: the mean over the cells, as in the published code, not their sum. That
    code sets a loss that is not finite to 0; here every loss is finite.

    Args:
        cells_student: (N,K,C), logits of the cells.
        cells_teacher: (N,K,C).
        logits_teacher: (N,C), of the whole image.
        target: (N,), class numbers.
        base: the loss of logits, for each row.
        complementary: weight >= 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar, or (N,).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> cells = torch.stack([logits, -logits], 1)
        >>> target = torch.tensor([0])
        >>> def base(z_s, z_t, target):
        ...     return kd_loss(z_s, z_t, temperature=4.0, reduction="none")
        >>> sdd_loss(cells, cells, logits, target, base, complementary=2.0).item()
        0.0
    """
    check_class_numbers(target)
    cells = cells_student.shape[1]
    repeated = target[:, None].expand(-1, cells).flatten()
    loss = base(cells_student.flatten(0, 1), cells_teacher.flatten(0, 1), repeated)

    is_cell_right = cells_teacher.argmax(2) == target[:, None]
    is_image_right = logits_teacher.argmax(1) == target
    differs = is_cell_right != is_image_right[:, None]
    weights = torch.where(differs, complementary, 1.0).to(loss.dtype)
    return reduced((weights * loss.unflatten(0, (-1, cells))).mean(1), reduction)


@METHODS.register("SDD")
class SDD(Distiller):
    """CE_WEIGHT * CE + min(epoch / WARMUP, 1) * KD_WEIGHT * sdd_loss, for the loss BASE.

    The cells are those of grids over the last feature map; the network's own classifier, which
    learns from them too, gives their logits.

    Differs from the published code: grids divide the map itself, not its 4x4 means. Both are the
    same where 4 divides the size of the map. So the cell of M = 1 has the logits of the network.
    There kd has no warm-up, and that of nkd is 20 epochs; WARMUP sets all of them.
    """

    needs_class_numbers = True
    has_loss_per_image = True
    teacher_needs = ("logits", "feats")
    student_needs = ("logits", "feats")
    defaults = dict(
        BASE=Key("kd", "the loss of logits that is applied to each cell", choices=BASES),
        M=Key([1, 2, 4], "grids of M x M cells; 1 is the whole image", low=1),
        CE_WEIGHT=Key(
            0.1, "weight of the cross-entropy with the labels; 1 for dkd and nkd", low=0.0
        ),
        KD_WEIGHT=Key(0.9, "weight of the loss of the cells; 1 for dkd and nkd", low=0.0),
        COMPLEMENTARY=Key(
            2.0, "weight of cells about which the teacher judges otherwise than the image", low=0.0
        ),
        T=Key(4.0, "softens both predictions", low=1e-3),
        ALPHA=Key(1.0, "weight of the target-class term of dkd", low=0.0),
        BETA=Key(8.0, "weight of the non-target-class term of dkd", low=0.0),
        GAMMA=Key(1.5, "weight of the non-target-class term of nkd", low=0.0),
        WARMUP=Key(
            30, "the distillation term grows over these epochs; 0 for kd", unit="epochs", low=0
        ),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        image_shape = self.facts().image_shape
        if not self.hp.M:
            raise UserError("SDD.M is empty; give it numbers of cells, as [1,2,4]")

        # In a tuple, as the classifiers are parts of the networks already.
        (given,) = self.teachers()
        self.classifiers = (self.classifier(student), self.classifier(given))
        for network, classifier in zip((student, given), self.classifiers, strict=True):
            check_cells(network, classifier, image_shape, "SDD")

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        of_student, of_teacher = self.classifiers
        loss_sdd = sdd_loss(
            self._cells(student, of_student),
            self._cells(teacher, of_teacher),
            teacher.logits,
            batch.target,
            self._base,
            hp.COMPLEMENTARY,
            self.reduction,
        )
        return {"loss_kd": warmup_factor(batch.epoch, hp.WARMUP) * hp.KD_WEIGHT * loss_sdd}

    def _cells(self, output: Output, classifier: nn.Module) -> Tensor:
        """Logits of the cells of all grids, (N,K,C)."""
        feature = last_map(output.features)
        found = []
        for grid in self.hp.M:
            if grid == 1:
                found.append(output.logits[:, None])
            else:
                found.append(self.standardized(cell_logits(feature, classifier, grid)))
        return torch.cat(found, 1)

    def _base(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """The loss BASE of each row, (N,)."""
        hp = self.hp
        logits = (logits_student, logits_teacher)
        if hp.BASE == "dkd":
            return dkd_loss(*logits, target, hp.ALPHA, hp.BETA, hp.T, reduction="none")
        if hp.BASE == "nkd":
            return nkd_loss(*logits, target, hp.GAMMA, hp.T, reduction="none")
        return kd_loss(*logits, hp.T, reduction="none")
