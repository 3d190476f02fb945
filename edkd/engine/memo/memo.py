"""The cached outputs of one teacher for one view: tables of an epoch, filled from the store."""

import re
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edkd import world
from edkd.dataset import NumberedLoader
from edkd.engine.device import autocast
from edkd.engine.memo.description import MADE_OF, describe, unlike
from edkd.engine.memo.exchange import exchange_rows
from edkd.engine.memo.finite import nonfinite_outputs, nonfinite_rows
from edkd.engine.memo.form import TITLES, Runner, StoredForm
from edkd.engine.memo.keys import memo_folder
from edkd.engine.memo.parts import EpochParts
from edkd.engine.memo.rows import LOGITS, POOLED, Values
from edkd.engine.memo.store import KEY_BYTES, Store
from edkd.signals import hold, pending, stop_together

Say = Callable[[str], None]

CPU = torch.device("cpu")

ROUND = 64
"""Batches that each of several processes computes before they exchange rows."""

PART_SECONDS = 60.0
"""Time after which computed outputs are stored, the most that a kill can cost."""

CHUNK_BYTES = 2**28
"""Of the rows that are in the memory of the host at a time."""


class MemoSettings(NamedTuple):
    """Where and how outputs are stored."""

    folder: Path
    """Of all teacher caches."""
    max_bytes: float
    """Size of that folder from which on nothing is written."""
    dtype: str
    """Of a stored number: fp32, bf16, fp16, or auto."""
    dataset: str
    teacher: str
    """Both become part of the cache's name."""
    top_k: int = 0
    """Probabilities that are stored of an image; 0: all logits."""


def memo_settings(cfg: Any, number: int = 0) -> MemoSettings:
    """Settings from TEACHER_MEMO, DATASET.TYPE and an entry of DISTILLER.TEACHER.

    Args:
        cfg: one name in DISTILLER.TEACHER is that of all teachers.
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
        top_k=cfg.TEACHER_MEMO.TOP_K,
    )


def safe_name(name: str) -> str:
    """A name that can be part of a folder's name: letters, digits, and `.`, `_`, `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64]


class TeacherMemo:
    """Outputs of a teacher for one view of the training images, computed once and stored.

    The key of a row in the store is `index * num_views + number`.

    Args:
        teacher: frozen, in eval mode, on the device.
        loader: makes the views.
        view: name of the view.
        settings: of the store.
        device: of the tables.
        amp: precision in which the teacher runs; None: float32.
        say: called with a line for the log.
        needs: the outputs that are read besides the logits: none, or "pooled_feat".

    Attributes:
        form: in which outputs are stored, and how to make outputs of rows of the tables.
        tables: (set_size,width) by name, filled for an epoch.
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
        needs: Sequence[str] = (),
    ) -> None:
        self.teacher = teacher
        self.loader = loader
        self.view = view
        self.name = settings.teacher
        self.num_views = loader.augmentations[view].num_views
        self.device = device
        self.amp = amp
        self.names = [name for name in (POOLED, LOGITS) if name == LOGITS or name in needs]

        sample = self._sample()
        runner = Runner(teacher, amp, device)
        self.form = StoredForm(runner, sample, settings.dtype, settings.top_k)
        self.rows = self.form.rows
        stored = self.storable(sample, *self._sampled())  # raises before a store is made

        name, about = describe(self, settings, sample)
        self.store = Store(settings.folder, name, about, settings.max_bytes, say)

        tables = stored if self.form.outputs else sample
        row_bytes = sum(value[0].nbytes for value in tables.values())
        self.parts = EpochParts.needed(loader, row_bytes, device)
        if self.parts and loader.listeners is not None:
            loader.listeners.append(weakref.WeakMethod(self.reach))  # no reference cycle

        # A captured CUDA graph reads these tensors: they are filled in place and never replaced.
        num_rows = self.parts.num_rows if self.parts else loader.set_size
        self.tables = {
            name: torch.zeros(num_rows, *value.shape[1:], dtype=value.dtype, device=device)
            for name, value in tables.items()
        }

    @torch.no_grad()
    def compute(self, index: Tensor, number: Tensor) -> Values:
        """Run the teacher.

        Args:
            index: (N,), image numbers.
            number: (N,), their view numbers.

        Returns:
            Logits (N,C), and pooled features (N,D) where they are needed, on the device.
        """
        return self.run(self._show(index, number))

    @torch.no_grad()
    def run(self, image: Tensor) -> Values:
        """The same for images (N,3,H,W) in their views."""
        with autocast(self.amp, self.device):
            logits, features = self.teacher(image)
        return {name: logits if name == LOGITS else features[name] for name in self.names}

    def _show(self, index: Tensor, number: Tensor) -> Tensor:
        return self.loader.show(index.to(self.device), number.to(self.device), self.view)

    def keys(self, epoch: int) -> np.ndarray:
        """The keys of an epoch, (num_images,), int64."""
        index, numbers = self.loader.order(epoch)
        return (index * self.num_views + numbers[self.view]).numpy()

    def prepare(self, epoch: int, show: Say) -> None:
        """Fill the tables for an epoch. Outputs that are not stored are computed and stored.

        Where the tables hold a part of an epoch, this happens before the first batch of the part.

        Args:
            show: called with the progress, often.
        """
        self.store.refresh()
        if self.parts is None:
            self._load_all(self.keys(epoch), show)
        else:
            self.parts.restart(show)

    def reach(self, epoch: int, number: int) -> None:
        """Fill the tables for the part of an epoch that has a batch.

        Args:
            number: of the batch, from 0.
        """
        assert self.parts is not None
        part = self.parts.of_batch(epoch, number)
        if part != self.parts.present:
            self.parts.present = None
            self._load_all(self.keys(epoch)[self.parts.images(part)], self.parts.show)
            self.parts.present = part

    def _load_all(self, keys: np.ndarray, show: Say) -> None:
        """Fill the tables from the first row on; where they have all images, each has its own."""
        start = 0
        for chunk in self._chunks(keys):
            self._load(chunk, start, show)
            start += len(chunk)

    def _chunks(self, keys: np.ndarray) -> list[np.ndarray]:
        """Keys (K,) in parts whose rows the memory of the host can hold."""
        num_chunks = -(-len(keys) * self.rows.num_bytes // CHUNK_BYTES)
        return np.array_split(keys, num_chunks) if len(keys) else []

    def _load(self, keys: np.ndarray, start: int, show: Say) -> None:
        """The same for some keys, (K,)."""
        rows, found = self.store.read(keys)
        rows, found = exchange_rows(rows, found)

        missing = keys[~found]
        if len(missing):
            rows[~found] = self.fill_together(
                missing, lambda done: show(f"teacher cache {done}/{len(missing)}")
            )

        values = {name: value.to(self.device) for name, value in self.rows.unpack(rows).items()}
        if not all(value.isfinite().all() for value in values.values()):
            raise nonfinite_rows(self.store.folder)
        values = self.form.tables(values, self.loader.show_size(self.device))

        index = torch.from_numpy(keys // self.num_views).to(self.device)
        if self.parts:
            index = self.parts.place(index, start)
        for name, table in self.tables.items():
            table[index] = values[name].to(table.dtype)

    def fill_together(self, keys: np.ndarray, report: Callable[[int], None]) -> np.ndarray:
        """As `fill`; of several processes, each computes and stores a share of the keys."""
        number = world.size()
        if number == 1:
            return self.fill(keys, report)

        # In rounds, so that processes wait for one another briefly and stop together.
        rounds: list[np.ndarray] = []
        size = ROUND * self.loader.show_size(self.device) * number
        for start in range(0, len(keys), size):
            stop_together(*world.largest([pending()]))
            report(start)
            rounds.append(self._fill_round(keys[start : start + size]))
        return np.concatenate(rounds)

    def _fill_round(self, keys: np.ndarray) -> np.ndarray:
        """Rows of keys (K,), of which each process computes a share."""
        own = np.arange(world.rank(), len(keys), world.size())
        rows = np.zeros((len(keys), self.rows.num_bytes), np.uint8)
        found = np.zeros(len(keys), bool)
        if len(own):
            rows[own] = self.fill(keys[own], lambda done: None)
            found[own] = True
        return exchange_rows(rows, found)[0]

    def fill(self, keys: np.ndarray, report: Callable[[int], None]) -> np.ndarray:
        """Compute outputs in large batches and store them, in parts.

        All batches have one shape, the last one too: the bits of a row must not depend on the other
        keys. Whatever ends the work, what is computed by then is stored.

        Args:
            keys: (K,), at least one.
            report: called with the number of finished keys before each batch.

        Returns:
            Rows (K,num_bytes), uint8.
        """
        size = self.loader.show_size(self.device)
        num_batches = -(-len(keys) // size)
        padded = torch.from_numpy(np.resize(keys, num_batches * size)).to(self.device)
        indices = padded // self.num_views
        numbers = padded % self.num_views

        shown = self.loader.shown(indices, numbers, self.view, size)
        together = zip(indices.split(size), numbers.split(size), strict=True)
        parts: list[np.ndarray] = []
        batches: list[Tensor] = []
        stored_at = time.monotonic()
        try:
            for batch_number, (index, number) in enumerate(together):
                report(batch_number * size)
                stored = self.storable(self.run(next(shown)), index, number)
                batches.append(self.rows.pack(stored))

                if time.monotonic() - stored_at > PART_SECONDS:
                    self._store_part(keys, parts, batches)
                    stored_at = time.monotonic()
        finally:
            self._store_part(keys, parts, batches)
        return np.concatenate(parts)

    def _store_part(self, keys: np.ndarray, parts: list[np.ndarray], batches: list[Tensor]) -> None:
        """Store the rows of these batches, and move them to the parts."""
        if not batches:
            return

        with hold():
            done = sum(map(len, parts))
            rows = torch.cat(batches)[: len(keys) - done].cpu().numpy()
            self.store.add(keys[done : done + len(rows)], rows)
            parts.append(rows)
            batches.clear()

    def storable(self, values: Values, index: Tensor, number: Tensor) -> Values:
        """Of outputs of `compute` what is stored, in the types in which it is stored.

        Raises:
            NonFiniteError: some are not finite; the message names the teacher and the image.
        """
        stored = self.form.stored(values)
        for name, value in stored.items():
            if not value.isfinite().all():
                image = self._show(index, number)
                teacher = f"the teacher {self.name}"
                computed = values.get(name, values[LOGITS])
                raise nonfinite_outputs(
                    teacher, TITLES[name], computed, value, index, image, self.amp
                )
        return stored

    def outlook(self, epochs: Sequence[int]) -> str:
        """How much of these epochs is cached, and in which form, as a line for the log."""
        is_absent = self.is_absent()
        is_needed = np.zeros(is_absent.shape, bool)
        if is_absent.any():
            for epoch in epochs:
                is_needed[self.keys(epoch)] = True
                if is_needed[is_absent].all():  # no later epoch needs more
                    break

        total = len(epochs) * self.loader.num_images
        to_compute = int((is_needed & is_absent).sum())
        known = f"{total - to_compute} of {total} {self.form.title}"
        return (
            f"teacher cache: {known} are cached or repeat, {to_compute} to compute; "
            f"stored {self.form}; a step runs the student alone; {self.store.folder}"
        )

    def others(self) -> list[str]:
        """Lines for the log about other caches of these names, if this one is empty."""
        return [] if self.store.num_rows else unlike(self.store.folder, self.store.about[MADE_OF])

    def is_absent(self) -> np.ndarray:
        """Which keys of images that take part have no row, (num_keys,), bool."""
        takes_part = np.zeros(self.loader.set_size, bool)
        index, _ = self.loader.order(1)
        takes_part[index.numpy()] = True
        return takes_part.repeat(self.num_views) & ~self.store.contains()

    @property
    def bytes_per_key(self) -> int:
        """That a key and its row take on the disk."""
        return KEY_BYTES + self.rows.num_bytes

    def _sample(self) -> Values:
        """Outputs for the images of `_sampled`."""
        return self.compute(*self._sampled())

    def _sampled(self) -> tuple[Tensor, Tensor]:
        """The first images, each in another view: their numbers, and those of the views."""
        index = self.loader.first_images(self.loader.show_size(CPU))
        return index, index % self.num_views
