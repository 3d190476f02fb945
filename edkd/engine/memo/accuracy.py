"""The accuracy of a teacher on evaluation images, stored beside its logits. No torch.

It is a file `<data set>_<teacher>_<16 hex digits>.json` in the folder of all caches. It holds a
hash of its content and its name, so that a damaged or foreign file is detected.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edkd.engine.memo.files import NOT_A_DESCRIPTION, folder_size, hash_of
from edkd.whole_files import replace_file

Figures = dict[str, float]
"""`top1` and `top5` in percent, and `loss`."""

NAMES = ("top1", "top5", "loss")


class Accuracy(NamedTuple):
    """The figures of one teacher, and what they were measured on."""

    dataset: str
    teacher: str
    images: str
    """As "10000 test images"."""
    precision: str
    """In which the teacher ran, as "float32"."""
    figures: Figures

    def line(self) -> str:
        """A line for the user."""
        reached = f"top-1 {self.figures['top1']:.2f} %"
        return f"{self.teacher} on {self.images} of {self.dataset}, {self.precision}: {reached}"


def accuracy_file(root: Path, dataset: str, teacher: str, identity: Sequence[Any]) -> Path:
    """The path of an accuracy.

    Args:
        root: folder of all caches.
        dataset: can be part of a file's name.
        teacher: the same.
        identity: all that decides the figures, in plain values.
    """
    digest = hash_of(json.dumps(identity).encode())[:16]
    return root / f"{dataset}_{teacher}_{digest}.json"


def read_accuracy(path: Path) -> Accuracy | None:
    """The content of a file; None where there is none, or it is damaged or another's."""
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        checksum = content.pop("checksum")
        found = Accuracy(**content)
        is_whole = checksum == _checksum(path, found) and _is_possible(found)
    except NOT_A_DESCRIPTION:
        return None
    return found if is_whole else None


def write_accuracy(
    path: Path, accuracy: Accuracy, limit: float, say: Callable[[str], None]
) -> None:
    """Write a file atomically. A failure of the disk raises no error and is logged.

    Args:
        path: from `accuracy_file`.
        accuracy: its content.
        limit: bytes in the folder of all caches from which on nothing is written.
        say: called with a line for the log.
    """
    content = accuracy._asdict() | {"checksum": _checksum(path, accuracy)}
    text = json.dumps(content, indent=1).encode()
    root = path.parent

    try:
        if folder_size(root) + len(text) > limit:
            raise OSError("TEACHER_MEMO.MAX_GB is reached")

        root.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    except OSError as error:
        reason = error.strerror or error
        say(
            f"teacher cache: the teacher's accuracy is not stored in {root} ({reason}); training "
            "continues"
        )


def _checksum(path: Path, accuracy: Accuracy) -> str:
    content = json.dumps([path.name, accuracy._asdict()], sort_keys=True)
    return hash_of(content.encode())


def _is_possible(accuracy: Accuracy) -> bool:
    """Whether the values have the types and ranges of such a file."""
    *texts, figures = accuracy
    are_texts = all(isinstance(text, str) and text.isprintable() for text in texts)
    are_finite = all(math.isfinite(figures[name]) for name in NAMES)
    return are_texts and are_finite and 0 <= figures["top1"] <= 100
