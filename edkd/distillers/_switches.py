"""Switches for methods that read logits: standardised logits, and a weight for each image."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from edkd.distillers._math import at_least_float32, log_softmax
from edkd.errors import UserError
from edkd.keys import Key
from edkd.types import Output

KEYS = {
    "DISTILLER.LSKD": Key(
        False,
        "standardise each row of logits before the distillation loss; the published "
        "temperatures and weights for it differ from those of the method alone",
        source="Sun et al., CVPR 2024",
    ),
    "DISTILLER.EAKD": Key(
        False,
        "weigh each image's distillation loss by the entropies of both predictions",
        source="Su et al., ICCV 2025",
    ),
    "DISTILLER.EAKD_TEMPERATURE": Key(
        3.0, "softens the predictions whose entropies EAKD takes; 2 on ImageNet", low=1e-3
    ),
}

EPSILON = 1e-7
"""Added to a standard deviation."""


class Switches(NamedTuple):
    """What is done with logits and losses besides the method's own mathematics."""

    lskd: bool = False
    """Whether `losses` gets standardised logits."""
    eakd: bool = False
    """Whether each image's terms are weighted."""
    temperature: float = 3.0
    """Of the entropies."""


def standardize(logits: Tensor) -> Tensor:
    """(z - mean_c z) / (std_c z + 1e-7) of each row, with the unbiased standard deviation.

    S. Sun, W. Ren, J. Li, R. Wang, X. Cao, "Logit Standardization in Knowledge Distillation",
    CVPR 2024, arXiv:2403.01427, algorithm 1.

    Args:
        logits: (N,C), C >= 2; computed in float32 or better.

    Returns:
        (N,C); 0 for a constant row.

    Example:
        >>> standardize(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.0000,  0.0000,  1.0000]])
    """
    z = at_least_float32(logits)
    centred = z - z.mean(-1, keepdim=True)
    return centred / (z.std(-1, keepdim=True) + EPSILON)


def entropy_weights(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """w_i = H_t_i / 2 * (1 + H_s_i / log C), with H the entropy of softmax(z / T), in nats.

    C.-P. Su, C.-H. Tseng, B. Peng, L. Zhao, S.-J. Lee, "EA-KD: Entropy-based Adaptive Knowledge
    Distillation", ICCV 2025, arXiv:2311.13621.

    Args:
        logits_student: (N,C), C >= 2.
        logits_teacher: (N,C).
        temperature: T > 0.

    Returns:
        (N,), without gradient, between 0 and log C.

    Example:
        >>> weights = entropy_weights(torch.zeros(1, 4), torch.zeros(1, 4), temperature=3.0)
        >>> round(weights.item(), 4)  # log(4)
        1.3863
    """
    largest = math.log(logits_student.shape[-1])
    entropy_s = _entropy(logits_student.detach(), temperature)
    entropy_t = _entropy(logits_teacher.detach(), temperature)
    return entropy_t / 2 * (1 + entropy_s / largest)


def with_standardized(output: Any) -> Any:
    """An Output, or Outputs by view, with standardised logits; features stay as they are."""
    if isinstance(output, Mapping):
        return {name: with_standardized(view) for name, view in output.items()}
    return Output(standardize(output.logits), output.features)


def weighted_means(
    terms: Mapping[str, Tensor], student: Any, teacher: Any, temperature: float
) -> dict[str, Tensor]:
    """The mean of each term over the images, weighted by `entropy_weights`.

    Args:
        terms: (N,) each, one number for each image; scalars, of a method in a combination that has
            no loss for each image, stay as they are.
        student: its Output; with several views, Outputs by name, of which the first counts.
        teacher: the same.
        temperature: of the entropies.
    """
    weights = entropy_weights(_first(student).logits, _first(teacher).logits, temperature)
    return {
        name: term if term.dim() == 0 else (weights * term).mean() for name, term in terms.items()
    }


def switches_of(cfg: Any) -> Switches:
    """The switches that DISTILLER sets."""
    node = cfg.DISTILLER
    return Switches(node.LSKD, node.EAKD, node.EAKD_TEMPERATURE)


def check_usable(switches: Switches, name: str, obstacle: str, has_loss_per_image: bool) -> None:
    """Raise UserError where a method cannot use its switches.

    Args:
        name: DISTILLER.TYPE.
        obstacle: why it can use none, after "which"; "" if it can.
        has_loss_per_image: whether it can return a loss for each image.
    """
    if switches.eakd and not obstacle and not has_loss_per_image:
        obstacle = "has no loss for each image"

    for key, is_on in (("LSKD", switches.lskd), ("EAKD", switches.eakd)):
        if is_on and obstacle:
            raise UserError(
                f"DISTILLER.{key} cannot be used with DISTILLER.TYPE {name}, which {obstacle}; set "
                "it to False, or use a method such as KD or DKD"
            )


def _entropy(logits: Tensor, temperature: float) -> Tensor:
    log_p = log_softmax(logits, temperature)
    return -(log_p.exp() * log_p).sum(-1)


def _first(output: Any) -> Any:
    return next(iter(output.values())) if isinstance(output, Mapping) else output
