"""Switches: standardised logits, a weight for each image, a teacher shuffled within classes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edkd.distillers._math import at_least_float32, check_class_numbers, log_softmax
from edkd.errors import UserError
from edkd.keys import Key
from edkd.types import ChangedFeatures, Output

KEYS = {
    "DISTILLER.LSKD": Key(
        False,
        "standardise each row of logits before the distillation loss; the published "
        "temperatures and weights for it differ from those of the method alone",
        source="Sun et al., CVPR 2024",
    ),
    "DISTILLER.EAKD": Key(
        False,
        "weight each image's distillation loss by the entropies of both predictions",
        source="Su et al., ICCV 2025",
    ),
    "DISTILLER.EAKD_TEMPERATURE": Key(
        3.0, "softens the predictions whose entropies EAKD takes; 2 on ImageNet", low=1e-3
    ),
    "DISTILLER.SHUFFLE_TEACHER": Key(
        False,
        "a control: each image gets the teacher's outputs for another image of its class in the "
        "batch, where there is one; what is left of a gain is knowledge about classes",
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
    shuffles: bool = False
    """Whether the teacher's outputs change places within a class."""


def standardize(logits: Tensor) -> Tensor:
    """(z - mean_c z) / (std_c z + 1e-7) of each row, with the unbiased standard deviation.

    S. Sun, W. Ren, J. Li, R. Wang, X. Cao, "Logit Standardization in Knowledge Distillation",
    CVPR 2024, arXiv:2403.01427, algorithm 1.

    Differs from the paper: a constant row, as of a head of zeros, is not divided. In the paper its
    gradient is multiplied by 1e7.

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
    std = z.std(-1, keepdim=True)
    return centred / torch.where(std > 0, std + EPSILON, 1.0)


def entropy_weights(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """w_i = H_t_i / 2 * (1 + H_s_i / log C), with H the entropy of softmax(z / T), in nats.

    C.-P. Su, C.-H. Tseng, B. Peng, L. Zhao, S.-J. Lee, "EA-KD: Entropy-based Adaptive Knowledge
    Distillation", ICCV 2025, arXiv:2311.13621.

    Differs from the published code: there KD and DKD on CIFAR-100 divide by 100 instead of log 100.
    With LSKD the entropies are those of the logits as they are; the code does so for MLKD alone.
    With two views those of the weak one weigh all terms; there each view has its own.

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


def others_of_class(target: Tensor) -> Tensor:
    """For each image the place in the batch of another image of its class, (N,).

    A permutation: the images of a class, in random order, each point to the next, and the last to
    the first. An image that is the only one of its class points to itself.

    Args:
        target: (N,), class numbers.

    Raises:
        UserError: `target` holds class probabilities.

    Example:
        >>> others_of_class(torch.tensor([7, 3, 7, 5]))
        tensor([2, 1, 0, 3])
    """
    check_class_numbers(target)
    shuffled = torch.rand(target.shape, device=target.device).argsort()
    order = shuffled[target[shuffled].argsort(stable=True)]
    by_class = target[order].contiguous()

    place = torch.arange(len(target), device=target.device)
    first = torch.searchsorted(by_class, by_class)
    last = torch.searchsorted(by_class, by_class, right=True) - 1
    following = torch.where(place < last, place + 1, first)
    return torch.empty_like(order).scatter(0, order, order[following])


def taken_from(output: Any, source: Tensor) -> Any:
    """Outputs in which image i has what image source[i] had.

    Args:
        output: an Output, Outputs by view, or a list of those.
        source: (N,), places in the batch.
    """
    if isinstance(output, Mapping):
        return {name: taken_from(view, source) for name, view in output.items()}
    if isinstance(output, list):
        return [taken_from(each, source) for each in output]

    moved = ChangedFeatures(output.features, lambda feature: _moved(feature, source))
    return Output(output.logits[source], moved)


def switches_of(cfg: Any) -> Switches:
    """The switches that DISTILLER sets."""
    node = cfg.DISTILLER
    return Switches(node.LSKD, node.EAKD, node.EAKD_TEMPERATURE, node.SHUFFLE_TEACHER)


def check_shuffling(name: str, obstacle: str) -> None:
    """Raise UserError where the teacher's outputs of a method cannot change places.

    Args:
        name: DISTILLER.TYPE.
        obstacle: why not, after "which"; "" if they can.
    """
    if obstacle:
        raise UserError(
            f"DISTILLER.SHUFFLE_TEACHER cannot be used with DISTILLER.TYPE {name}, which "
            f"{obstacle}; set it to False, or use a method such as KD or DKD"
        )


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


def _moved(feature: Any, source: Tensor) -> Any:
    """A feature (N,...), or a list of such, with the rows that `source` names."""
    if isinstance(feature, Sequence):
        return [_moved(each, source) for each in feature]
    return feature[source]


def _first(output: Any) -> Any:
    return next(iter(output.values())) if isinstance(output, Mapping) else output
