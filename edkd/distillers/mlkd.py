"""Multi-level logit distillation: of each image, between images, and between classes.

Y. Jin, J. Wang, D. Lin, "Multi-level Logit Distillation", CVPR 2023.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edkd.distillers._base import Distiller, Views
from edkd.distillers._math import kl_divergence, log_softmax, reduced
from edkd.distillers._split import split_terms
from edkd.errors import UserError
from edkd.hints import not_one_of
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch

Logits = Mapping[str, Tensor]
"""Logits (N,C) by the name of the view, "weak" and "strong"."""

FORMS = ("paper", "reference")

SWAPPED = 2
"""Last temperatures of the strong view for which the published code compares the weak view."""


def mlkd_loss(
    logits_student: Logits,
    logits_teacher: Logits,
    masks: tuple[Tensor, Tensor],
    temperatures: Sequence[float],
    form: str = "paper",
    reduction: str = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of the three levels, each summed over the temperatures.

    With P = softmax(Z / T) (N,C), N images i, j and C classes c, d:

    instance = T^2 * mean_i(m_i * KL(t_weak || s_weak) + KL(t_strong || s_strong))
    batch = sum_ij m_j * (P_t P_t' - P_s P_s')_ij^2 / N, of the weak view
    class = sum_cd n_d * (P_t' P_t - P_s' P_s)_cd^2 / C, of the weak view

    m marks the images, and n the classes, about which the teacher is not more confident than about
    the median one, see `low_confidence`.

    Args:
        logits_student: (N,C) for each view; computed in float32 or better, finite for logits up to
            +-1e4.
        logits_teacher: the same.
        masks: m (N,) and n (C,), 1 or 0.
        temperatures: one or more, T > 0.
        form: "paper" or "reference", the published code. There the mean of a mask multiplies a loss
            that is already a mean or a sum; and with the last two temperatures the weak view takes
            the place of the strong one.
        reduction: of `instance`, "mean"; or "none", for the loss of each image.

    Returns:
        Three scalars >= 0, or (N,) for `instance`; 0 where both predictions agree.

    Raises:
        UserError: another value of `form`.

    Differs from the paper: the confidence masks, which median they compare with, and the views of
    each level are those of the published code.

    Example:
        >>> import torch
        >>> logits = {name: torch.tensor([[2.0, 0.0, -1.0]]) for name in ("weak", "strong")}
        >>> losses = mlkd_loss(logits, logits, low_confidence(logits["weak"]), [4.0, 2.0])
        >>> [loss.item() for loss in losses]
        [0.0, 0.0, 0.0]
    """
    instance = instance_loss(
        logits_student, logits_teacher, masks[0], temperatures, form, reduction
    )
    weak = (logits_student["weak"], logits_teacher["weak"])
    return instance, *relation_losses(*weak, masks, temperatures, form)


def instance_loss(
    logits_student: Logits,
    logits_teacher: Logits,
    mask: Tensor,
    temperatures: Sequence[float],
    form: str = "paper",
    reduction: str = "mean",
) -> Tensor:
    """The loss of the images, see `mlkd_loss`: a scalar, or (N,).

    Args:
        logits_student: (N,C) for each view.
        logits_teacher: the same.
        mask: m (N,), 1 or 0.
        temperatures: one or more, T > 0.
        form: "paper" or "reference".
        reduction: "mean"; or "none", for the loss of each image.
    """

    def kd(view: str, temperature: float) -> Tensor:
        log_p_s = log_softmax(logits_student[view], temperature)
        log_p_t = log_softmax(logits_teacher[view], temperature)
        return temperature**2 * kl_divergence(log_p_t, log_p_s)

    factor = mask_factor(mask, form)
    strong_views = views_of_strong(len(temperatures), form)
    losses = [
        factor * kd("weak", temperature) + kd(view, temperature)
        for temperature, view in zip(temperatures, strong_views, strict=True)
    ]
    return reduced(torch.stack(losses).sum(0), reduction)


def relation_losses(
    logits_student: Tensor,
    logits_teacher: Tensor,
    masks: tuple[Tensor, Tensor],
    temperatures: Sequence[float],
    form: str = "paper",
) -> tuple[Tensor, Tensor]:
    """The losses between images and between classes, see `mlkd_loss`: two scalars.

    Args:
        logits_student: (N,C), of the weak view.
        logits_teacher: (N,C).
        masks: m (N,) and n (C,), 1 or 0.
        temperatures: one or more, T > 0.
        form: "paper" or "reference".
    """
    of_images, of_classes = (mask_factor(mask, form) for mask in masks)
    batch: list[Tensor] = []
    classes: list[Tensor] = []
    for temperature in temperatures:
        p_s = log_softmax(logits_student, temperature).exp()
        p_t = log_softmax(logits_teacher, temperature).exp()
        batch.append(gram_loss(p_s, p_t, of_images))
        classes.append(gram_loss(p_s.t(), p_t.t(), of_classes))
    return torch.stack(batch).sum(), torch.stack(classes).sum()


def gram_loss(rows_student: Tensor, rows_teacher: Tensor, factor: Tensor) -> Tensor:
    """sum_ij f_j * (R_t R_t' - R_s R_s')_ij^2 / M, a scalar.

    Args:
        rows_student: (M,D), float32 or better.
        rows_teacher: (M,D).
        factor: (M,), or a number without dimensions.
    """
    with torch.autocast(rows_student.device.type, enabled=False):
        difference = rows_teacher @ rows_teacher.t() - rows_student @ rows_student.t()
    return (factor * difference.square()).sum() / len(difference)


def low_confidence(logits_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The images and classes about which a teacher is at most as confident as about the median.

    The confidence of an image is its largest probability at temperature 1, that of a class the sum
    of its probabilities over the batch. For an even number, the median is the mean of the two
    middle ones.

    Args:
        logits_teacher: (N,C).

    Returns:
        (N,) and (C,), 1 or 0.
    """
    p_t = log_softmax(logits_teacher).exp()
    of_images = p_t.amax(1)
    of_classes = p_t.sum(0)
    masks = [each <= _median(each) for each in (of_images, of_classes)]
    return masks[0].to(p_t.dtype), masks[1].to(p_t.dtype)


def mask_factor(mask: Tensor, form: str) -> Tensor:
    """The mask (M,); in the form "reference" its mean, without dimensions.

    Raises:
        UserError: another value of `form`.
    """
    if form not in FORMS:
        raise UserError(f"mlkd_loss: {not_one_of('form', form, FORMS)}")
    return mask.mean() if form == "reference" else mask


def views_of_strong(number: int, form: str) -> list[str]:
    """The view that is compared as the strong one, for each temperature."""
    swapped = min(SWAPPED, number) if form == "reference" else 0
    return ["strong"] * (number - swapped) + ["weak"] * swapped


def _median(values: Tensor) -> Tensor:
    """Of (M,), without waiting for the device."""
    ordered = values.sort().values
    last = len(values) - 1
    return (ordered[last // 2] + ordered[len(values) // 2]) / 2


@METHODS.register("MLKD")
class MLKD(Distiller):
    """CE_WEIGHT * (CE(weak, target) + CE(strong, target)) + KD_WEIGHT * the sum of `mlkd_loss`.

    With DISTILLER.LSKD, only the losses of the images compare standardised logits.
    """

    views = ("weak", "strong")
    has_loss_per_image = True
    standardizes_itself = True  # the masks are those of the teacher as it is
    can_split = True
    gathers_batch = True
    defaults = dict(
        TEMPERATURE=Key(4.0, "softens both predictions", low=1e-3),
        FURTHER_TEMPERATURES=Key(
            [3.0, 5.0, 2.0, 6.0], "the losses are added for each of these, too", low=1e-3
        ),
        LOSS=dict(
            CE_WEIGHT=Key(0.1, "weight of the cross-entropies of both views", low=0.0),
            KD_WEIGHT=Key(0.9, "weight of the losses of all levels", low=0.0),
        ),
        FORM=Key("paper", "form of the paper or of the published code", choices=FORMS),
    )

    def losses(self, student: Views, teacher: Views, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        weight = hp.LOSS.KD_WEIGHT
        temperatures = [hp.TEMPERATURE, *hp.FURTHER_TEMPERATURES]
        masks = low_confidence(teacher["weak"].logits)

        # As they are, also with DISTILLER.LSKD: so in the code of its authors.
        weak = (student["weak"].logits, teacher["weak"].logits)
        of_batch, of_classes = relation_losses(*weak, masks, temperatures, hp.FORM)
        levels = {"loss_kd_batch": weight * of_batch, "loss_kd_class": weight * of_classes}

        logits_s = {name: self.standardized(student[name].logits) for name in self.views}
        logits_t = {name: self.standardized(teacher[name].logits) for name in self.views}
        if self.split:
            factor = mask_factor(masks[0], hp.FORM)
            return levels | self._split_losses(logits_s, logits_t, factor, batch)

        loss_kd = instance_loss(logits_s, logits_t, masks[0], temperatures, hp.FORM, self.reduction)
        return {"loss_kd": weight * loss_kd} | levels

    def _split_losses(
        self, logits_s: Logits, logits_t: Logits, factor: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """The losses of each image, in two parts."""
        assert self.split is not None
        temperatures = [self.hp.TEMPERATURE, *self.hp.FURTHER_TEMPERATURES]
        strong_views = views_of_strong(len(temperatures), self.hp.FORM)
        target: list[Tensor] = []
        other: list[Tensor] = []
        for temperature, view in zip(temperatures, strong_views, strict=True):
            for own_factor, name in ((factor, "weak"), (1.0, view)):
                parts = self.split.kd(logits_s[name], logits_t[name], temperature, batch)
                target.append(own_factor * parts[0])
                other.append(own_factor * parts[1])

        weight = self.hp.LOSS.KD_WEIGHT
        both = (torch.stack(target).sum(0), torch.stack(other).sum(0))
        return split_terms(both, weight, self.reduction)
