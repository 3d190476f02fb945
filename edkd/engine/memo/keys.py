"""The configuration keys of the teacher cache, and its folder. This module imports no torch."""

from pathlib import Path
from typing import Any

from edkd.keys import Key

FOLDER_NAME = "teacher_memo"

KEYS = {
    "TEACHER_MEMO.ENABLED": Key(
        True,
        "cache the teacher's outputs, if views are numbered and the method reads only its logits "
        "and pooled features",
    ),
    "TEACHER_MEMO.FOLDER": Key(
        "",
        f"folder of all teacher caches, shared by runs; empty: {FOLDER_NAME}/ in LOG.PREFIX",
        free_on_resume=True,
        names_run=False,
        is_path=True,
    ),
    "TEACHER_MEMO.DTYPE": Key(
        "auto",
        "type of a cached number; auto: the type in which the teacher computes, and fp16 for "
        "probabilities of TOP_K",
        choices=("auto", "fp32", "bf16", "fp16"),
    ),
    "TEACHER_MEMO.TOP_K": Key(
        0,
        "number of the largest probabilities to cache, with the sum of the others, instead of all "
        "logits; 0: all logits",
        low=0,
        high=2**15,
    ),
    "TEACHER_MEMO.MAX_GB": Key(
        20.0,
        "size limit of that folder; once it is reached, nothing more is written",
        unit="GB",
        low=0.0,
        free_on_resume=True,
    ),
}


def memo_folder(cfg: Any) -> Path:
    """The folder of all teacher caches: TEACHER_MEMO.FOLDER, else a folder beside the runs."""
    given = cfg.TEACHER_MEMO.FOLDER
    folder = Path(given) if given else Path(cfg.LOG.PREFIX) / FOLDER_NAME
    return folder.expanduser()
