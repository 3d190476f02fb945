"""The cached logits of one teacher for one view: a table of an epoch, filled from the store."""

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edkd.dataset import NumberedLoader, large_batch
from edkd.engine.checkpoint import fingerprint
from edkd.engine.device import autocast
from edkd.engine.memo.files import hash_of
from edkd.engine.memo.finite import nonfinite_logits, nonfinite_rows
from edkd.engine.memo.keys import memo_folder
from edkd.engine.memo.store import Store
from edkd.signals import hold

Say = Callable[[str], None]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SAMPLE_SIZE = large_batch(torch.device("cpu"))
"""Images whose logits become part of the fingerprint: other hardware computes other bits."""

USUAL_VIEW = "weak"

PART_SECONDS = 60.0
"""Time after which computed logits are stored, the most that a kill can cost."""


class MemoSettings(NamedTuple):
    """Where and how logits are stored."""

    folder: Path
    """Of all teacher caches."""
    max_bytes: float
    """Size of that folder from which on nothing is written."""
    dtype: str
    """Of a stored logit: fp32, bf16, fp16, or auto."""
    dataset: str
    teacher: str
    """Both become part of the cache's name."""


def memo_settings(cfg: Any, number: int = 0) -> MemoSettings:
    """Settings from TEACHER_MEMO, DATASET.TYPE and an entry of DISTILLER.TEACHER.

    Args:
        number: of the teacher, from 0.
    """
    names = cfg.DISTILLER.TEACHER
    name = names if isinstance(names, str) else names[number]
    return MemoSettings(
        folder=memo_folder(cfg),
        max_bytes=cfg.TEACHER_MEMO.MAX_GB * 1e9,
        dtype=cfg.TEACHER_MEMO.DTYPE,
        dataset=safe_name(cfg.DATASET.TYPE),
        teacher=safe_name(name),
    )


def safe_name(name: str) -> str:
    """A name that can be part of a folder's name: letters, digits, and `.`, `_`, `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64]


class TeacherMemo:
    """Logits of a teacher for one view of the training images, computed once and stored.

    The key of a row in the store is `index * num_views + number`.

    Args:
        teacher: frozen, in eval mode, on the device.
        loader: makes the views.
        view: name of the view.
        settings: of the store.
        device: of the table.
        amp: precision in which the teacher runs; None: float32.
        say: called with a line for the log.
    """

    def __init__(
        self,
        teacher: nn.Module,
        loader: NumberedLoader,
        view: str,
        settings: MemoSettings,
        device: torch.device,
        amp: torch.dtype | None,
        say: Say,
    ) -> None:
        self.teacher = teacher
        self.loader = loader
        self.view = view
        self.name = settings.teacher
        self.num_views = loader.augmentations[view].num_views
        self.device = device
        self.amp = amp

        sample = self._sample()
        self.dtype = DTYPES.get(settings.dtype, sample.dtype)
        self.storable(sample, *self._sampled())  # before a store is made
        self.store = self._open_store(settings, sample, say)

        # A captured CUDA graph reads this tensor, so it is filled in place and never replaced.
        shape = (loader.set_size, sample.shape[1])
        self.table = torch.zeros(shape, dtype=sample.dtype, device=device)

    @torch.no_grad()
    def compute(self, index: Tensor, number: Tensor) -> Tensor:
        """Run the teacher.

        Args:
            index: (N,), image numbers.
            number: (N,), their view numbers.

        Returns:
            Logits (N,C), on the device.
        """
        image = self.loader.show(index.to(self.device), number.to(self.device), self.view)
        with autocast(self.amp, self.device):
            logits, _ = self.teacher(image)
        return logits

    def keys(self, epoch: int) -> np.ndarray:
        """The keys of an epoch, (num_images,), int64."""
        index, numbers = self.loader.order(epoch)
        return (index * self.num_views + numbers[self.view]).numpy()

    def prepare(self, epoch: int, show: Say) -> None:
        """Fill the table for an epoch. Logits that are not in the store are computed and stored.

        Args:
            show: called with the progress, often.
        """
        keys = self.keys(epoch)
        self.store.refresh()
        rows, found = self.store.read(keys)

        if not found.all():
            rows[~found] = self.fill(keys[~found], show)

        logits = torch.from_numpy(rows).view(self.dtype).to(self.device)
        if not logits.isfinite().all():
            raise nonfinite_rows(self.store.folder)
        index = torch.from_numpy(keys // self.num_views).to(self.device)
        self.table[index] = logits.to(self.table.dtype)

    def fill(self, keys: np.ndarray, show: Say) -> np.ndarray:
        """Compute logits in large batches and store them, in parts.

        All batches have one shape, the last one too: the bits of a row must not depend on the other
        keys. Whatever ends the work, what is computed by then is stored.

        Args:
            keys: (K,), at least one.
            show: called with the progress before each batch.

        Returns:
            Rows (K,row_bytes), uint8.
        """
        size = large_batch(self.device)
        num_batches = -(-len(keys) // size)
        padded = torch.from_numpy(np.resize(keys, num_batches * size)).to(self.device)

        parts: list[np.ndarray] = []
        batches: list[Tensor] = []
        stored_at = time.monotonic()
        try:
            for batch_number, batch in enumerate(padded.split(size)):
                show(f"teacher cache {batch_number * size}/{len(keys)}")
                logits = self.compute(batch // self.num_views, batch % self.num_views)
                batches.append(
                    self.storable(logits, batch // self.num_views, batch % self.num_views)
                )

                if time.monotonic() - stored_at > PART_SECONDS:
                    self._store_part(keys, parts, batches)
                    stored_at = time.monotonic()
        finally:
            self._store_part(keys, parts, batches)
        return np.concatenate(parts)

    def _store_part(self, keys: np.ndarray, parts: list[np.ndarray], batches: list[Tensor]) -> None:
        """Store the logits of these batches, and move them to the parts."""
        if not batches:
            return

        with hold():
            done = sum(map(len, parts))
            rows = as_bytes(torch.cat(batches)[: len(keys) - done])
            self.store.add(keys[done : done + len(rows)], rows)
            parts.append(rows)
            batches.clear()

    def storable(self, logits: Tensor, index: Tensor, number: Tensor) -> Tensor:
        """Logits of `compute` in the type in which they are stored.

        Raises:
            NonFiniteError: some are not finite; the message names the teacher and the image.
        """
        stored = logits.to(self.dtype)
        if not stored.isfinite().all():
            image = self.loader.show(index.to(self.device), number.to(self.device), self.view)
            raise nonfinite_logits(self.name, logits, stored, index, image, self.amp)
        return stored

    def outlook(self, epochs: Sequence[int]) -> str:
        """How much of these epochs is cached, as a line for the log."""
        is_needed = np.zeros(self.store.row_numbers.shape, bool)
        for epoch in epochs:
            is_needed[self.keys(epoch)] = True

        total = len(epochs) * self.loader.num_images
        to_compute = int((is_needed & ~self.store.contains()).sum())
        return (
            f"teacher cache: {total - to_compute} of {total} logits are cached or repeat, "
            f"{to_compute} to compute; {self.store.folder}"
        )

    def _sample(self) -> Tensor:
        """Logits of the images of `_sampled`."""
        return self.compute(*self._sampled())

    def _sampled(self) -> tuple[Tensor, Tensor]:
        """The first images, each in another view: their numbers, and those of the views."""
        index = torch.arange(min(SAMPLE_SIZE, self.loader.set_size))
        return index, index % self.num_views

    def _open_store(self, settings: MemoSettings, sample: Tensor, say: Say) -> Store:
        """The store in a folder whose name contains a hash of all that decides the logits."""
        num_classes = sample.shape[1]
        about = {
            "dataset": settings.dataset,
            "teacher": settings.teacher,
            "num_keys": self.loader.set_size * self.num_views,
            "num_classes": num_classes,
            "dtype": str(self.dtype).removeprefix("torch."),
            "row_bytes": num_classes * self.dtype.itemsize,
        }
        if self.view != USUAL_VIEW:
            about["view"] = self.view

        identity = [
            about,
            fingerprint(self.teacher),
            self.loader.fingerprint(self.view),
            hash_of(as_bytes(sample).tobytes()),
        ]
        digest = hash_of(json.dumps(identity).encode())[:16]
        name = f"{settings.dataset}_{settings.teacher}_{digest}"
        return Store(settings.folder, name, about, settings.max_bytes, say)


def as_bytes(logits: Tensor) -> np.ndarray:
    """Logits (N,C) as rows (N,row_bytes), uint8, on the CPU."""
    return logits.cpu().contiguous().view(torch.uint8).numpy()
