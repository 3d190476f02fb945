"""The outputs of a configuration's teachers for all views, computed ahead of training.

They are stored in the teacher cache, where training with the same configuration finds them.
"""

import sys
import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from edkd import world
from edkd.dataset.mixing import with_batch_augmentations
from edkd.distillers import networks_of, to_channels_last
from edkd.engine.build import build_data, build_distiller
from edkd.engine.device import amp_dtype, deterministic, keep_freed_memory, pick_device
from edkd.engine.inputs import with_input_of_networks
from edkd.engine.memo.cache import make_memos, why_not
from edkd.engine.memo.files import folder_size
from edkd.engine.memo.memo import CHUNK_BYTES, Say, TeacherMemo
from edkd.errors import StorageError, UserError
from edkd.paths import free_bytes
from edkd.signals import Stopped
from edkd.streams import Guard, fill_missing_descriptors

SAY_EVERY = 60.0
"""Seconds between two lines of progress, where there is no terminal for a bar."""

CONTINUES = "finished outputs are stored; the same command continues from here"


def store_outputs(cfg: Any, device: str | torch.device, say: Say) -> None:
    """Compute what the teacher cache lacks for any epoch of any seed, and store it.

    A kill costs at most a minute of the work.

    Args:
        cfg: from `load_config`, as for training.
        device: auto, cuda, cuda:N, mps or cpu.
        say: called with lines for the user.

    Raises:
        UserError: nothing can be stored for this configuration, or TEACHER_MEMO.MAX_GB is too
            small; nothing was written.
        StorageError: the disk is too small, or it failed.
        NonFiniteError, WorkerError: see `edkd.errors`.
    """
    world.check_single_process("softlabels")
    fill_missing_descriptors()
    where = pick_device(str(device))
    amp_dtype(cfg.SOLVER.AMP, where)  # raises before anything is loaded
    cfg = with_input_of_networks(cfg)

    with deterministic(cfg.SOLVER.DETERMINISTIC):
        memos = teacher_memos(cfg, where, say)
        missing = [_missing(memo) for memo in memos]
        for memo, keys in zip(memos, missing, strict=True):
            say(_description(memo, len(keys)))
        check_size(memos, missing)

        for memo, keys in zip(memos, missing, strict=True):
            _fill(memo, keys, say)


def teacher_memos(cfg: Any, device: torch.device, say: Say) -> list[TeacherMemo]:
    """The caches that training with a configuration uses, one for each teacher and view.

    Raises:
        UserError: it uses none; the message has the reason.
    """
    if not cfg.TEACHER_MEMO.ENABLED:
        raise UserError("TEACHER_MEMO.ENABLED is False, so that nothing is stored; set it to True")

    data = with_batch_augmentations(build_data(cfg, device), cfg)
    loader: Any = data.train
    distiller = build_distiller(cfg, data).to(device)
    for network in networks_of(distiller):
        to_channels_last(network)
    keep_freed_memory(device)
    if not distiller.needs_teacher or not distiller.teachers():
        raise UserError(
            f"DISTILLER.TYPE {cfg.DISTILLER.TYPE} has no teacher whose outputs could be stored; "
            "set another one"
        )

    amp = amp_dtype(cfg.SOLVER.AMP, device)
    reason = why_not(distiller, loader, amp, device)
    if reason:
        raise UserError(
            f"no outputs of the teacher can be stored: {reason} (DISTILLER.TYPE "
            f"{cfg.DISTILLER.TYPE}, DATASET.TYPE {cfg.DATASET.TYPE})"
        )

    memos: list[TeacherMemo] = []
    for number in range(len(distiller.teachers())):
        memos += make_memos(distiller, number, loader, cfg, device, amp, say)
    for memo in memos:
        for line in memo.others():
            say(line)
    return memos


def check_size(memos: list[TeacherMemo], missing: list[np.ndarray]) -> None:
    """Raise an error where outputs do not fit, before any is computed.

    Args:
        memos: of one folder.
        missing: keys to compute, for each of them.

    Raises:
        UserError: they exceed TEACHER_MEMO.MAX_GB.
        StorageError: the disk has less room.
    """
    pairs = zip(memos, missing, strict=True)
    needed = sum(len(keys) * memo.bytes_per_key for memo, keys in pairs)
    store = memos[0].store
    held = folder_size(store.root)
    if needed and held + needed > store.limit:
        raise UserError(
            f"{store.root} holds {readable(held)}, and {readable(needed)} come on top, but "
            f"TEACHER_MEMO.MAX_GB is {store.limit / 1e9:g}; increase it, store less with "
            "TEACHER_MEMO.TOP_K or fewer DATASET.VIEWS, or delete other caches"
        )

    free = free_bytes(store.root)
    if needed > free:
        raise StorageError(
            f"{store.root}: {readable(needed)} are needed and {readable(free)} are free; make "
            "room, or set TEACHER_MEMO.FOLDER to another disk"
        )


def readable(size: float) -> str:
    """A number of bytes for the user, as "2.9 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _missing(memo: TeacherMemo) -> np.ndarray:
    """The keys that have no intact row. The views of an image stand together: it is cached."""
    memo.store.verify()
    return np.flatnonzero(memo.is_absent())


def _description(memo: TeacherMemo, num_missing: int) -> str:
    """What is stored and what is to be computed, in one line."""
    store = memo.store
    total = memo.loader.num_images * memo.num_views
    size = readable(total * memo.bytes_per_key)
    free = readable(free_bytes(store.root))
    views = f"{memo.loader.num_images} images x {memo.num_views} views"
    form = f"{memo.form.title} stored {memo.form}, {memo.bytes_per_key} bytes each"
    return (
        f"softlabels: {memo.name}, {views}, {form}: {size} ({free} free); {total - num_missing} of "
        f"{total} are stored, {num_missing} to compute; {store.folder}"
    )


def _fill(memo: TeacherMemo, keys: np.ndarray, say: Say) -> None:
    """Compute and store the outputs of keys, chunk by chunk."""
    total = memo.loader.num_images * memo.num_views
    held = total - len(keys)
    size = max(memo.loader.show_size(memo.device), CHUNK_BYTES // memo.bytes_per_key)

    with Progress(total, held, say) as progress:
        for start in range(0, len(keys), size):
            chunk = keys[start : start + size]
            progress.start = held + start
            try:
                memo.fill(chunk, progress)
            except Stopped as stopped:
                stopped.hint = CONTINUES
                raise
            progress(len(chunk))
            if not memo.store.is_writable:
                raise StorageError(
                    f"{memo.store.root} cannot be written any more, see above; make room and run "
                    "the same command again: finished outputs are stored"
                )
    say(f"softlabels: all {total} {memo.form.title} of {memo.name} are stored")


class Progress:
    """Shows how much is done and the time left: on a terminal as a bar, else as lines.

    Args:
        total: number of all keys.
        held: those that were stored before.
        say: called with a line once a minute, where there is no terminal.
    """

    def __init__(self, total: int, held: int, say: Say) -> None:
        self.total = total
        self.held = held
        self.start = held
        """Keys that are stored before the present chunk."""
        self.say = say
        self.began = time.monotonic()
        self.said = self.began
        self.has_bar = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=held,
            unit="view",
            file=Guard(sys.stderr),
            disable=not self.has_bar,
            dynamic_ncols=True,
        )

    def __call__(self, done: int) -> None:
        """Note that so many keys of the present chunk are done."""
        now = self.start + done
        self.bar.update(now - self.bar.n)
        if not self.has_bar and time.monotonic() - self.said > SAY_EVERY:
            self.said = time.monotonic()
            self.say(f"softlabels: {now} of {self.total}, {self.time_left(now)} left")

    def time_left(self, now: int) -> str:
        """As "1:02:03", at the rate since the beginning."""
        rate = (now - self.held) / (time.monotonic() - self.began)
        return tqdm.format_interval((self.total - now) / rate) if rate else "unknown time"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
