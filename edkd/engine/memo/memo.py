"""The cached outputs of one teacher for one view: tables of an epoch, filled from the store."""

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edkd import world
from edkd.dataset import NumberedLoader, large_batch
from edkd.distillers import find_classifier
from edkd.engine.checkpoint import fingerprint
from edkd.engine.device import autocast
from edkd.engine.memo.exchange import exchange_rows
from edkd.engine.memo.files import hash_of
from edkd.engine.memo.finite import nonfinite_outputs, nonfinite_rows
from edkd.engine.memo.keys import memo_folder
from edkd.engine.memo.rows import LOGITS, POOLED, Field, RowFormat, Values
from edkd.engine.memo.store import Store
from edkd.signals import hold

Say = Callable[[str], None]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SAMPLE_SIZE = large_batch(torch.device("cpu"))
"""Images whose outputs become part of the fingerprint: other hardware computes other bits."""

USUAL_VIEW = "weak"

PART_SECONDS = 60.0
"""Time after which computed outputs are stored, the most that a kill can cost."""

TITLES = {LOGITS: "logits", POOLED: "pooled features"}
"""Of outputs, for the log."""


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
    """Outputs of a teacher for one view of the training images, computed once and stored.

    The key of a row in the store is `index * num_views + number`. Where pooled features are needed
    and the teacher's classifier makes its logits of them bit for bit, a row holds these alone.

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
        tables: outputs (set_size,width) by name, filled for an epoch.
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
        self.classifier = self._classifier(settings, sample)
        self.rows = self._format(settings, sample)
        self.storable(sample, *self._sampled())  # before a store is made
        self.store = self._open_store(settings, sample, say)

        # A captured CUDA graph reads these tensors: they are filled in place and never replaced.
        self.tables = {
            name: torch.zeros(loader.set_size, *value.shape[1:], dtype=value.dtype, device=device)
            for name, value in sample.items()
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
        image = self.loader.show(index.to(self.device), number.to(self.device), self.view)
        with autocast(self.amp, self.device):
            logits, features = self.teacher(image)
        return {name: logits if name == LOGITS else features[name] for name in self.names}

    def keys(self, epoch: int) -> np.ndarray:
        """The keys of an epoch, (num_images,), int64."""
        index, numbers = self.loader.order(epoch)
        return (index * self.num_views + numbers[self.view]).numpy()

    def prepare(self, epoch: int, show: Say) -> None:
        """Fill the tables for an epoch. Outputs that are not stored are computed and stored.

        Args:
            show: called with the progress, often.
        """
        keys = self.keys(epoch)
        self.store.refresh()
        rows, found = self.store.read(keys)
        rows, found = exchange_rows(rows, found)

        if not found.all():
            rows[~found] = self.fill_together(keys[~found], show)

        values = {name: value.to(self.device) for name, value in self.rows.unpack(rows).items()}
        if not all(value.isfinite().all() for value in values.values()):
            raise nonfinite_rows(self.store.folder)
        if self.classifier is not None:
            values[LOGITS] = self._classify(self.classifier, values[POOLED])

        index = torch.from_numpy(keys // self.num_views).to(self.device)
        for name, table in self.tables.items():
            table[index] = values[name].to(table.dtype)

    def fill_together(self, keys: np.ndarray, show: Say) -> np.ndarray:
        """As `fill`; of several processes, each computes and stores a share of the keys."""
        places = [np.arange(each, len(keys), world.size()) for each in range(world.size())]
        own = places[world.rank()]
        rows = np.zeros((len(keys), self.rows.num_bytes), np.uint8)
        found = np.zeros(len(keys), bool)
        if len(own):
            rows[own] = self.fill(keys[own], show)
            found[own] = True
        return exchange_rows(rows, found)[0]

    def fill(self, keys: np.ndarray, show: Say) -> np.ndarray:
        """Compute outputs in large batches and store them, in parts.

        All batches have one shape, the last one too: the bits of a row must not depend on the other
        keys. Whatever ends the work, what is computed by then is stored.

        Args:
            keys: (K,), at least one.
            show: called with the progress before each batch.

        Returns:
            Rows (K,num_bytes), uint8.
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
                index = batch // self.num_views
                number = batch % self.num_views
                stored = self.storable(self.compute(index, number), index, number)
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
        """Outputs of `compute` that are stored, in the types in which they are stored.

        Raises:
            NonFiniteError: some are not finite; the message names the teacher and the image.
        """
        stored = self.rows.stored(values)
        for name, value in stored.items():
            if not value.isfinite().all():
                image = self.loader.show(index.to(self.device), number.to(self.device), self.view)
                teacher = f"the teacher {self.name}"
                raise nonfinite_outputs(
                    teacher, TITLES[name], values[name], value, index, image, self.amp
                )
        return stored

    def outlook(self, epochs: Sequence[int]) -> str:
        """How much of these epochs is cached, as a line for the log."""
        is_needed = np.zeros(self.store.row_numbers.shape, bool)
        for epoch in epochs:
            is_needed[self.keys(epoch)] = True

        total = len(epochs) * self.loader.num_images
        to_compute = int((is_needed & ~self.store.contains()).sum())
        return (
            f"teacher cache: {total - to_compute} of {total} {self.title} are cached or repeat, "
            f"{to_compute} to compute; a step runs the student alone; {self.store.folder}"
        )

    @property
    def title(self) -> str:
        """Of what is stored, for the log: "logits"."""
        return " and ".join(TITLES[field.name] for field in self.rows.fields)

    def _sample(self) -> Values:
        """Outputs for the images of `_sampled`."""
        return self.compute(*self._sampled())

    def _sampled(self) -> tuple[Tensor, Tensor]:
        """The first images, each in another view: their numbers, and those of the views."""
        index = torch.arange(min(SAMPLE_SIZE, self.loader.set_size))
        return index, index % self.num_views

    def _classifier(self, settings: MemoSettings, sample: Values) -> nn.Module | None:
        """The layer that makes the logits of stored pooled features, with the teacher's bits."""
        if POOLED not in sample or settings.dtype != "auto":
            return None
        logits = sample[LOGITS]
        classifier = find_classifier(self.teacher, logits.shape[1])
        if classifier is None or classifier.in_features != sample[POOLED].shape[1]:
            return None

        with torch.no_grad(), autocast(self.amp, self.device):
            derived = classifier(sample[POOLED])
        is_same = derived.dtype == logits.dtype and torch.equal(derived, logits)
        return classifier if is_same else None

    @torch.no_grad()
    def _classify(self, classifier: nn.Module, pooled: Tensor) -> Tensor:
        """Logits (K,C) of pooled features (K,D), in batches of the shape of the teacher's."""
        size = large_batch(self.device)
        num_batches = -(-len(pooled) // size)
        order = torch.arange(num_batches * size, device=self.device) % len(pooled)
        with autocast(self.amp, self.device):
            logits = [classifier(pooled[part]) for part in order.split(size)]
        return torch.cat(logits)[: len(pooled)]

    def _format(self, settings: MemoSettings, sample: Values) -> RowFormat:
        """The stored outputs and their types."""
        fields = [
            Field(name, value.shape[1], DTYPES.get(settings.dtype, value.dtype))
            for name, value in sample.items()
            if name != LOGITS or self.classifier is None
        ]
        return RowFormat(fields)

    def _open_store(self, settings: MemoSettings, sample: Values, say: Say) -> Store:
        """The store in a folder whose name contains a hash of all that decides the outputs."""
        about: dict[str, Any] = {
            "dataset": settings.dataset,
            "teacher": settings.teacher,
            "num_keys": self.loader.set_size * self.num_views,
            "num_classes": sample[LOGITS].shape[1],
            "dtype": str(self.rows.fields[0].dtype).removeprefix("torch."),
            "row_bytes": self.rows.num_bytes,
        }
        if POOLED in sample:
            about["outputs"] = {field.name: field.width for field in self.rows.fields}
        if self.view != USUAL_VIEW:
            about["view"] = self.view

        identity = [
            about,
            fingerprint(self.teacher),
            self.loader.fingerprint(self.view),
            hash_of(_bytes_of(sample)),
        ]
        digest = hash_of(json.dumps(identity).encode())[:16]
        name = f"{settings.dataset}_{settings.teacher}_{digest}"
        return Store(settings.folder, name, about, settings.max_bytes, say)


def _bytes_of(values: Values) -> bytes:
    """The bits of outputs, one after the other."""
    parts = [value.cpu().contiguous().view(torch.uint8).numpy() for value in values.values()]
    return b"".join(part.tobytes() for part in parts)
