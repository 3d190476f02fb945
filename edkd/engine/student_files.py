"""The files of a run's students, for evaluation and deployment, and the numbered checkpoints."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from edkd.engine.best import is_best, is_new_record_of_all, top1_key
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.config.compare import flatten
from edkd.engine.file_facts import Facts, as_content
from edkd.engine.log.background import Record
from edkd.keys import Key
from edkd.models import own_keys
from edkd.types import DataInfo

KEYS = {
    "LOG.SAVE_CHECKPOINT_FREQ": Key(
        40,
        "time between numbered checkpoints; 0: none",
        unit="epochs",
        low=0,
        free_on_resume=True,
        names_run=False,
    ),
    "LOG.KEEP": Key(
        0,
        "numbered checkpoints that are kept, the newest; 0: all",
        low=0,
        free_on_resume=True,
        names_run=False,
    ),
}


class StudentFiles:
    """Writes `<student>_latest`, `<student>_best` and `<student>_<epoch>` of each student.

    With several students, `student_<tag>` is a copy of the best one's file.

    Args:
        folder: of the run.
        students: networks by name.
        architectures: what each student is, in the same order.
        data: facts about the images, kept in each file.
        split: by which the best epoch is chosen, "val" or "test".
        cfg: DATASET.TYPE and the keys of the students' models are kept in each file.
    """

    def __init__(
        self,
        folder: Path,
        students: dict[str, nn.Module],
        architectures: Sequence[str],
        data: DataInfo,
        split: str,
        cfg: CfgNode,
    ) -> None:
        self.folder = folder
        self.students = students
        self.architectures = dict(zip(students, architectures, strict=True))
        self.split = split
        self.keys = {name: top1_key(split, name) for name in students}
        self.data = data
        self.dataset = cfg.DATASET.TYPE
        self.values = dict(flatten(cfg))

    def save(self, history: Sequence[Record], tags: Sequence[str]) -> None:
        """Write the files of the last epoch of a history.

        Args:
            history: of the run.
            tags: "latest", and the number of the epoch where it is kept.
        """
        record = history[-1]
        leader = max(self.students, key=lambda name: record[self.keys[name]])

        for name in self.students:
            files = [f"{name}_{tag}" for tag in tags]
            if is_best(history, self.keys[name]):
                files.append(f"{name}_best")

            if name == leader:
                files += [f"student_{tag}" for tag in tags]
                if is_new_record_of_all(history, self.keys, record[self.keys[name]]):
                    files.append("student_best")

            content = self.content(name)
            content["accuracy"] = record[self.keys[name]]
            content["split"] = self.split
            for file in dict.fromkeys(files):
                save_checkpoint(content, self.folder / file)

    def content(self, name: str) -> dict[str, Any]:
        """A student's weights, and the facts needed to use them."""
        state = self.students[name].state_dict()
        data = self.data
        architecture = self.architectures[name]
        facts = Facts(
            architecture=architecture,
            dataset=self.dataset,
            num_classes=data.num_classes,
            class_names=data.class_names,
            input=data.preparation,
            model_keys=own_keys(architecture, self.values),
        )
        return {"model": {key: _on_cpu(value) for key, value in state.items()}} | as_content(facts)

    def size(self) -> int:
        """Bytes of all students' files with one tag."""
        sizes = [_bytes_of(student.state_dict()) for student in self.students.values()]
        copy = max(sizes) if len(sizes) > 1 else 0
        return sum(sizes) + copy


def room_of_run(cfg: Any, trained_state: dict[str, Any], students: int, buffers: int) -> int:
    """Bytes that the checkpoints of a whole run take at most, the partial file of a save included.

    Args:
        cfg: SOLVER and LOG are read.
        trained_state: tensors of the distiller without the teacher.
        students: bytes of the students' files with one tag.
        buffers: tensors that the update rule keeps for each parameter.
    """
    whole = (1 + buffers) * _bytes_of(trained_state)

    frequency = cfg.LOG.SAVE_CHECKPOINT_FREQ or math.inf
    kept = cfg.LOG.KEEP + 1 if cfg.LOG.KEEP else math.inf
    numbered = min(cfg.SOLVER.EPOCHS // frequency, kept)
    return int((whole + students) * (4 + numbered))


def remove_numbered(folder: Path, keep: int) -> None:
    """Remove the numbered checkpoints of a run but for the newest `keep`."""
    names = [path.name.removeprefix("epoch_") for path in folder.glob("epoch_*")]
    numbers = sorted(int(name) for name in names if name.isdigit())
    for number in numbers[:-keep]:
        for path in (folder / f"epoch_{number}", *folder.glob(f"student*_{number}")):
            path.unlink(missing_ok=True)


def _on_cpu(value: Any) -> Any:
    """A tensor for a file; a module's extra state, which may be anything, stays as it is."""
    return value.cpu().contiguous() if isinstance(value, Tensor) else value


def _bytes_of(state: dict[str, Any]) -> int:
    return sum(getattr(value, "nbytes", 0) for value in state.values())
