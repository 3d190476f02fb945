"""What a teacher cache is of: its name with a fingerprint, and how it differs from other caches."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edkd.engine.checkpoint import fingerprint
from edkd.engine.memo.files import ABOUT, NOT_A_DESCRIPTION, hash_of, memo_folders, segment_files
from edkd.engine.memo.rows import LOGITS, POOLED, Values

if TYPE_CHECKING:
    from edkd.engine.memo.memo import MemoSettings, TeacherMemo

USUAL_VIEW = "weak"

MADE_OF = "made_of"
"""Entry of `about.json`: hashes of what the outputs depend on, by names for messages."""

SHOWN = 3
"""Other caches that are listed."""

_FORM = "the form (views, classes, TOP_K or DTYPE)"
_BITS = "the computed bits (precision, processor or library)"


def describe(
    memo: "TeacherMemo", settings: "MemoSettings", sample: Values
) -> tuple[str, dict[str, Any]]:
    """The name of a cache's folder, and the content of its `about.json`.

    The name has a hash of all that decides the outputs and how they are stored.

    Args:
        memo: with its rows.
        sample: outputs for the first images.
    """
    loader = memo.loader
    about: dict[str, Any] = {
        "dataset": settings.dataset,
        "teacher": settings.teacher,
        "num_keys": loader.set_size * memo.num_views,
        "num_classes": sample[LOGITS].shape[1],
        "dtype": str(memo.rows.fields[0].dtype).removeprefix("torch."),
        "row_bytes": memo.rows.num_bytes,
    }
    if settings.top_k:
        about["top_k"] = settings.top_k
    if POOLED in sample:
        about["outputs"] = {field.name: field.width for field in memo.rows.fields}
    if memo.view != USUAL_VIEW:
        about["view"] = memo.view

    weights = fingerprint(memo.teacher)
    bits = hash_of(_bytes_of(sample))
    identity = [about, weights, loader.fingerprint(memo.view), bits]
    digest = hash_of(json.dumps(identity).encode())[:16]
    name = f"{settings.dataset}_{settings.teacher}_{digest}"

    made_of = {
        "the teacher's weights": weights,
        **loader.parts(memo.view),
        _FORM: hash_of(json.dumps(about).encode()),
        _BITS: bits,
    }
    return name, about | {MADE_OF: made_of}


def unlike(folder: Path, made_of: dict[str, str]) -> list[str]:
    """Lines for the log about other caches of this data set and teacher that hold outputs.

    Args:
        folder: of the cache in use.
        made_of: of this cache.
    """
    start = folder.name[: folder.name.rindex("_") + 1]
    others = [
        other
        for other in memo_folders(folder.parent)
        if other.name.startswith(start) and other != folder and segment_files(other)
    ]

    lines = []
    for other in others:
        names = _differences(other, made_of)
        if names:
            lines.append(
                f"teacher cache: {other} is not used, as this run differs in {', '.join(names)}"
            )
    return lines[:SHOWN]


def _differences(other: Path, made_of: dict[str, str]) -> list[str]:
    """The names of what another cache is not made of; empty where it does not state them."""
    try:
        theirs = dict(json.loads((other / ABOUT).read_text())[MADE_OF])
    except NOT_A_DESCRIPTION:
        return []

    names = [name for name, found in made_of.items() if theirs.get(name) != found]
    # Other bits follow from each of the other differences.
    return names if names == [_BITS] else [name for name in names if name != _BITS]


def _bytes_of(values: Values) -> bytes:
    """The bits of outputs, one after the other."""
    parts = [value.cpu().contiguous().view(torch.uint8).numpy() for value in values.values()]
    return b"".join(part.tobytes() for part in parts)
