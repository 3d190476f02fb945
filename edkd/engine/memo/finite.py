"""Why outputs of a teacher are not finite, for an error that names the cause."""

from pathlib import Path

import torch
from torch import Tensor

from edkd.errors import NonFiniteError

_REMEDY = "give a teacher that was trained without diverging"


def nonfinite_outputs(
    teacher: str,
    title: str,
    values: Tensor,
    stored: Tensor,
    index: Tensor,
    image: Tensor,
    amp: torch.dtype | None,
) -> NonFiniteError:
    """The error for the first image whose outputs cannot be cached.

    Args:
        teacher: who it is, for the message.
        title: of the outputs, as "logits".
        values: (N,D), as the teacher returned them.
        stored: (N,D), in the type in which they are cached.
        index: (N,), numbers of the images.
        image: (N,3,H,W), what the teacher saw.
        amp: precision in which it ran; None: float32.
    """
    is_bad = ~stored.isfinite().all(1)
    row = int(is_bad.nonzero()[0])
    where = f"training image {int(index[row])}"

    if not image[row].isfinite().all():
        return NonFiniteError(f"{where} has values that are NaN or infinite; repair or remove it")
    if values[row].isfinite().all():
        return NonFiniteError(
            f"the {title} of {teacher} for {where} are too large for {stored.dtype}; "
            "set TEACHER_MEMO.DTYPE fp32"
        )

    remedy = _REMEDY if amp is None else f"set SOLVER.AMP off, or {_REMEDY}"
    return NonFiniteError(
        f"{teacher} returns {title} that are NaN or infinite for {where} "
        f"({int(is_bad.sum())} of the {len(is_bad)} images in its batch); they are not cached; "
        f"{remedy}"
    )


def nonfinite_rows(folder: Path) -> NonFiniteError:
    """The error for cached outputs that are not finite, which an older version could write."""
    return NonFiniteError(
        f"the teacher cache {folder} has values that are NaN or infinite; delete that folder"
    )
