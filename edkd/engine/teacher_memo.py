"""The teacher memo: a frozen teacher is asked once about a numbered view of an image, and remembered from then on.

Before an epoch, what it has not answered yet is asked in large batches; a step only gathers rows of a table. On disk
an answer is a row of logits under the key `index * num_views + view`. Rows lie in segments, `FOLDER/<memo>/<name>`:
first the keys (int32), then the rows. A segment is written once and named by a hash of its bytes and its folder, so
several processes can share a folder without a lock, and a damaged or foreign file gives itself away.
"""

import copy
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edkd.dataset import Batch, NumberedLoader, large_batch
from edkd.distillers import Distiller
from edkd.engine.checkpoint import fingerprint
from edkd.engine.device import autocast
from edkd.errors import StorageError, UserError, nearest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ABOUT = "about.json"
KEY_BYTES = np.dtype(np.int32).itemsize

Say = Callable[[str], None]


class TeacherMemo(nn.Module):
    """Stands in for a teacher: `memo(image) -> (logits, features)`, remembered where `image` is that of `batch`.

    Features are the real teacher's, computed when they are looked at; so is everything about any other image, and
    every other attribute.

    Args:
        teacher: frozen, in eval mode, on the device.
        cfg: TEACHER_MEMO, LOG.PREFIX and, for the folder's name, DATASET.TYPE and DISTILLER.TEACHER are read.
        amp: precision in which the teacher answers; None: float32.
        say: called with a line for a person.
    """

    def __init__(
        self, teacher: nn.Module, loader: NumberedLoader, cfg: Any, device: torch.device, amp: Any, say: Say
    ) -> None:
        super().__init__()
        self.teacher, self.loader, self.device, self.amp = teacher, loader, device, amp
        self.batch: Batch | None = None
        self.version = 0
        first = torch.arange(min(large_batch(torch.device("cpu")), loader.set_size))
        sample = self.ask(first, first % loader.num_views)
        self.dtype = DTYPES.get(cfg.TEACHER_MEMO.DTYPE, sample.dtype)
        self.table = torch.zeros(loader.set_size, sample.shape[1], dtype=sample.dtype, device=device)
        about = {
            "dataset": cfg.DATASET.TYPE,
            "teacher": cfg.DISTILLER.TEACHER,
            "num_keys": loader.set_size * loader.num_views,
            "num_classes": sample.shape[1],
            "dtype": str(self.dtype).removeprefix("torch."),
            "row_bytes": sample.shape[1] * self.dtype.itemsize,
        }
        identity = [about, fingerprint(teacher), loader.fingerprint(), _hash(_bytes(sample).tobytes())]
        name = f"{cfg.DATASET.TYPE}_{cfg.DISTILLER.TEACHER}_{_hash(json.dumps(identity).encode())[:16]}"
        self.store = Store(memo_folder(cfg), name, about, cfg.TEACHER_MEMO.MAX_GB * 1e9, say)

    def forward(self, image: Tensor) -> tuple[Tensor, Mapping[str, Any]]:
        """Logits (N,C), without gradients, and features."""
        if self.batch is None or not is_untouched(image, self.batch, self.version):
            return self.teacher(image)
        return self.table[self.batch.index], Features(self.teacher, image)

    def expect(self, batch: Batch) -> None:
        """Tell which batch comes next."""
        self.batch, self.version = batch, 0 if torch.compiler.is_compiling() else batch.image._version

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("teacher"), name)

    @torch.no_grad()
    def ask(self, index: Tensor, view: Tensor) -> Tensor:
        """The teacher's own logits (N,C) for images in their views."""
        with autocast(self.amp, self.device):
            return self.teacher(self.loader.show(index.to(self.device), view.to(self.device)))[0]

    def keys(self, epoch: int) -> np.ndarray:
        """The keys of an epoch, (num_images,), int64."""
        index, view = self.loader.order(epoch)
        return (index * self.loader.num_views + view).numpy()

    def prepare(self, epoch: int, show: Say) -> None:
        """Fill the table for an epoch; ask the teacher what the store does not hold, and store it.

        Args:
            show: called with what is being done, often.
        """
        keys = self.keys(epoch)
        self.store.refresh()
        rows, found = self.store.read(keys)
        if not found.all():
            rows[~found] = self.fill(keys[~found], show)
            self.store.add(keys[~found], rows[~found])
        logits = torch.from_numpy(rows).view(self.dtype).to(self.device).to(self.table.dtype)
        self.table[torch.from_numpy(keys // self.loader.num_views).to(self.device)] = logits

    def fill(self, keys: np.ndarray, show: Say) -> np.ndarray:
        """Ask the teacher; returns rows (K,row_bytes), uint8.

        Each batch has the same shape, the last one too, so that an answer does not depend on what else is asked.
        """
        size = large_batch(self.device)
        padded = torch.from_numpy(np.resize(keys, -(-len(keys) // size) * size)).to(self.device)
        answers = []
        for i, batch in enumerate(padded.split(size)):
            show(f"teacher memo {i * size}/{len(keys)}")
            answers.append(self.ask(batch // self.loader.num_views, batch % self.loader.num_views).to(self.dtype))
        return _bytes(torch.cat(answers)[: len(keys)])

    def outlook(self, epochs: Sequence[int]) -> str:
        """What these epochs will ask, and what of it is there."""
        wanted = np.zeros(len(self.store.where), dtype=bool)
        for epoch in epochs:
            wanted[self.keys(epoch)] = True
        asked = len(epochs) * self.loader.num_images
        left = int((wanted & (self.store.where < 0)).sum())
        return (
            f"teacher memo: {asked - left} of the teacher's {asked} answers are remembered or come twice, "
            f"{left} are asked in large batches; {self.store.folder}"
        )


def remember(
    distiller: Distiller, loader: Any, cfg: Any, device: torch.device, amp: Any, epochs: Sequence[int], say: Say
) -> TeacherMemo | None:
    """Put a memo in the teacher's place, where the method needs no more than logits of numbered views; say what it did.

    A published method does not declare what it needs, so a copy of it runs one step on trial.
    """
    if not (cfg.TEACHER_MEMO.ENABLED and distiller.needs_teacher):
        return None
    if reason := _why_not(distiller, loader, amp, device):
        say(f"teacher memo: off, as {reason}; the teacher runs in each step")
        return None
    teacher = distiller.teacher
    memo = TeacherMemo(teacher, loader, cfg, device, amp, say)
    for owner in [module for module in distiller.modules() if module is not teacher]:
        for name, child in owner._modules.items():
            if child is teacher:
                owner._modules[name] = memo
    say(memo.outlook(epochs))
    return memo


def _why_not(distiller: Distiller, loader: Any, amp: Any, device: torch.device) -> str:
    """Why the teacher cannot be remembered; "" where it can."""
    if not isinstance(loader, NumberedLoader):
        return "the views of these images have no numbers"
    if any(module._forward_hooks or module._forward_pre_hooks for module in distiller.teacher.modules()):
        return "the method hooks into the teacher"
    trial = Trial(distiller.teacher, next(iter(loader.epoch(1))), device)
    batch = trial.batch
    try:
        with autocast(amp, device):
            trial.autocast = torch.is_autocast_enabled(device.type)
            method = copy.deepcopy(distiller, {id(distiller.teacher): trial}).train()
            method(image=batch.image, target=batch.target, index=batch.index, epoch=1)
    except Exception as error:  # whatever a method does that a copy of it cannot
        return f"a trial step of the method failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if trial.asked_more:
        return f"the method asks the teacher for {trial.asked_more}"
    return "" if trial.asked else "the method did not ask the teacher in its first step"


def is_untouched(image: Tensor, batch: Batch, version: int) -> bool:
    """Whether an image is the batch's own, as it was made, and no gradient is wanted of it."""
    if image is not batch.image or image.requires_grad:
        return False
    return torch.compiler.is_compiling() or image._version == version  # which a compiler cannot see; the trial has


class Features(Mapping[str, Any]):
    """The teacher's features of an image, computed when somebody looks."""

    def __init__(self, teacher: Callable[[Tensor], Any], image: Tensor) -> None:
        self.teacher, self.image = teacher, image

    def _real(self) -> dict[str, Any]:
        return self.teacher(self.image)[1]

    def __getitem__(self, key: str) -> Any:
        return self._real()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._real())

    def __len__(self) -> int:
        return len(self._real())


class Trial(nn.Module):
    """A teacher that watches what it is asked: more than the logits of the batch, or not."""

    def __init__(self, teacher: nn.Module, batch: Batch, device: torch.device) -> None:
        super().__init__()
        self.teacher, self.batch, self.version, self.device = teacher, batch, batch.image._version, device
        self.asked, self.asked_more, self.autocast = False, "", False

    def forward(self, *images: Tensor, **options: Any) -> tuple[Tensor, Mapping[str, Any]]:
        """The teacher's answer."""
        if options or len(images) != 1 or not is_untouched(images[0], self.batch, self.version):
            self.asked_more = "another image than the batch's"
        elif torch.is_autocast_enabled(self.device.type) != self.autocast:
            self.asked_more = "an answer in another precision"
        self.asked = True
        logits, features = self.teacher(*images, **options)
        return logits, features if self.asked_more else Features(self._features, images[0])

    def _features(self, image: Tensor) -> Any:
        self.asked_more = "its features"
        return self.teacher(image)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            self.asked_more = self.asked_more or f"its {name}"
            return getattr(super().__getattr__("teacher"), name)


class Segment(NamedTuple):
    """A file of the store: its rows have the numbers start, start + 1, ..., start + size - 1 among those of all."""

    path: Path
    start: int
    size: int


class Store:
    """Rows by key, kept in a folder of segments. It believes no file, and no failure of the disk can stop a run.

    Args:
        root: of all memos; what lies in it counts for the limit.
        name: of the folder below it.
        about: describes the memo; "num_keys" and "row_bytes" are read here.
        limit: bytes that `root` may hold; past it, nothing is added.
    """

    def __init__(self, root: Path, name: str, about: dict[str, Any], limit: float, say: Say) -> None:
        self.root, self.folder, self.about, self.limit, self.say = root, root / name, about, limit, say
        self.row_bytes: int = about["row_bytes"]
        self.where = np.full(about["num_keys"], -1, np.int32)  # key -> number of its row, -1: there is none
        self.segments: dict[str, Segment] = {}
        self.trusted: set[str] = set()  # names of segments whose bytes were compared with them
        self.refused: set[str] = set()  # and were found to be others
        self.num_rows, self.writes = 0, True
        self.refresh()

    def refresh(self) -> None:
        """Take in the segments that this or another process has written since."""
        for path in sorted(segment_files(self.folder)):
            if path.name not in self.segments and path.name not in self.refused:
                self._enter(path)

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (K,row_bytes) of keys (K,), and which of them were there, (K,), bool."""
        rows = np.zeros((len(keys), self.row_bytes), np.uint8)
        order = self.where[keys].argsort()
        numbers = self.where[keys][order]
        for segment in list(self.segments.values()):
            first, end = numbers.searchsorted([segment.start, segment.start + segment.size])
            if first < end and (stored := self._rows(segment)) is not None:
                rows[order[first:end]] = stored[numbers[first:end] - segment.start]
        return rows, self.where[keys] >= 0

    def add(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Write a segment, unless the limit is reached or the disk fails: then say so, once, and never try again."""
        if not self.writes:
            return
        content = keys.astype(np.int32).tobytes() + rows.tobytes()
        name = segment_name(self.folder, content)
        try:
            if folder_size(self.root) + len(content) > self.limit:
                raise OSError("TEACHER_MEMO.MAX_GB is reached")
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / ABOUT).exists():
                _replace(self.folder / ABOUT, json.dumps(self.about).encode())
            _replace(self.folder / name, content)
        except OSError as error:
            self.writes = False
            self.say(f"teacher memo: adds nothing more to {self.root}: {error.strerror or error}; the run goes on")
            return
        self.trusted.add(name)
        self.refused.discard(name)
        self._enter(self.folder / name)

    def _enter(self, path: Path) -> None:
        """Enter the keys of a segment. Its bytes are compared with its name only when a row of it is wanted."""
        try:
            count, rest = divmod(path.stat().st_size, KEY_BYTES + self.row_bytes)
            keys = np.fromfile(path, np.int32, count)
        except OSError:  # another process has just removed it, or the disk fails: then its rows are asked again
            return
        if rest or not count or len(keys) < count or keys.min() < 0 or keys.max() >= len(self.where):
            return self._refuse(path)
        self.segments[path.name] = Segment(path, self.num_rows, count)
        self.where[keys] = np.arange(self.num_rows, self.num_rows + count, dtype=np.int32)
        self.num_rows += count

    def _rows(self, segment: Segment) -> np.ndarray | None:
        """The rows of a segment, mapped, and the first time read and compared; None: they are not to be had."""
        path, shape = segment.path, (segment.size, self.row_bytes)
        try:
            if path.name in self.trusted:
                return np.memmap(path, np.uint8, "r", KEY_BYTES * segment.size, shape)
            content = path.read_bytes()
        except (OSError, ValueError):  # it is gone, or no longer as long as it was
            self._forget(segment)
            return None
        if segment_name(path.parent, content) != path.name:
            self._refuse(path)
            self._forget(segment)
            return None
        self.trusted.add(path.name)
        return np.frombuffer(content, np.uint8, offset=KEY_BYTES * segment.size).reshape(shape)

    def _forget(self, segment: Segment) -> None:
        self.where[(self.where >= segment.start) & (self.where < segment.start + segment.size)] = -1
        self.trusted.discard(segment.path.name)
        del self.segments[segment.path.name]

    def _refuse(self, path: Path) -> None:
        self.refused.add(path.name)
        self.say(f"teacher memo: {path} is damaged or of another memo; what it should hold is asked again")
        with suppress(OSError):  # in a folder that cannot be written it stays, unused
            path.unlink(missing_ok=True)


def find_memos(root: Path, names: Sequence[str] = ()) -> list[Path]:
    """The folders of the named memos in `root`, or of all. Raises UserError for a name that is not there."""
    found = {folder.name: folder for folder in memo_folders(root) if (folder / ABOUT).is_file()}
    if strange := [name for name in names if name not in found]:
        raise UserError(f"no memo {strange[0]} in {root}{nearest(strange[0], found)}")
    return [found[name] for name in names or found]


def survey(folder: Path, verify: bool = False) -> tuple[str, list[Path]]:
    """A memo in a line, and its segments whose bytes do not agree with their names (none without `verify`)."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        width, num_keys = KEY_BYTES + int(about["row_bytes"]), int(about["num_keys"])
        what = f"{about['teacher']} on {about['dataset']}, {about['dtype']}"
        if width <= KEY_BYTES or num_keys < 1 or not what.isprintable():
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UserError(f"{folder / ABOUT} is damaged; delete the folder") from None
    files = segment_files(folder)
    damaged = [path for path in files if verify and segment_name(folder, path.read_bytes()) != path.name]
    keys = [np.fromfile(path, np.int32, path.stat().st_size // width) for path in files]
    held, size = len(np.unique(np.concatenate([[], *keys]))), sum(path.stat().st_size for path in files)
    line = f"{folder.name}: {what}, {held} of {num_keys} answers ({100 * held / num_keys:.1f} %), {size / 1e6:.1f} MB"
    return line, damaged


def delete_memo(folder: Path) -> None:
    """Remove a memo. A run that reads it goes on. Raises StorageError."""
    try:
        for path in memo_files(folder):
            path.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        raise StorageError(f"cannot delete {folder}: {error.strerror or error}") from error


def memo_folder(cfg: Any) -> Path:
    """Where memos lie: TEACHER_MEMO.FOLDER, else beside the runs."""
    return Path(cfg.TEACHER_MEMO.FOLDER or Path(cfg.LOG.PREFIX) / "teacher_memo").expanduser()


def memo_folders(root: Path) -> list[Path]:
    """The folders in `root` that are called as memos are."""
    try:
        return sorted(path for path in root.iterdir() if re.search("_[0-9a-f]{16}$", path.name) and path.is_dir())
    except OSError:
        return []


def memo_files(folder: Path) -> list[Path]:
    """The files of a memo: its segments, what describes it, and what has not got its name yet."""
    name = rf"([0-9a-f]{{32}}|{re.escape(ABOUT)})(\.[0-9a-f]+\.partial)?"
    try:
        return [path for path in folder.iterdir() if re.fullmatch(name, path.name) and not path.is_dir()]
    except OSError:
        return []


def segment_files(folder: Path) -> list[Path]:
    """The segments of a memo, whole or not."""
    return [path for path in memo_files(folder) if "." not in path.name]


def segment_name(folder: Path, content: bytes) -> str:
    """What a segment is called: a hash of its bytes and of the memo that it belongs to."""
    return _hash(folder.name.encode() + content)


def folder_size(root: Path) -> int:
    """Bytes of the memos in `root`. What died while it was written, an hour ago or more, is removed."""
    size = 0
    for path in (path for folder in memo_folders(root) for path in memo_files(folder)):
        with suppress(OSError):  # another process has just removed it
            status = path.stat()
            if path.suffix == ".partial" and time.time() - status.st_mtime > 3600:
                path.unlink()
            else:
                size += status.st_size
    return size


def _replace(path: Path, content: bytes) -> None:
    """Write a file at once. Others may be writing the same one; and what a crash leaves need not be whole."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().contiguous().view(torch.uint8).numpy()
