"""The best epoch, of the run and of each student."""

from collections.abc import Sequence

from edkd.engine.log.background import Record


def top1_key(split: str, student: str = "student") -> str:
    """The key of a student's top-1 accuracy in a record: "test_top1", "test_student2_top1".

    "student" stands for the only student, or for the mean over all students.
    """
    return f"{split}_top1" if student == "student" else f"{split}_{student}_top1"


def best_record(history: Sequence[Record], key: str) -> Record:
    """The record of the first epoch with the highest value."""
    return max(history, key=lambda record: record[key])


def is_best(history: Sequence[Record], key: str) -> bool:
    """Whether the last epoch is the first one with the highest value."""
    return best_record(history, key) is history[-1]


def leading_student(history: Sequence[Record], keys: dict[str, str]) -> str:
    """The student whose best epoch is the highest; of equal ones, the one that was there first.

    Args:
        history: of the run.
        keys: student -> key of its top-1, in the order of the students.
    """
    reached = {name: best_record(history, key) for name, key in keys.items()}
    return max(keys, key=lambda name: (reached[name][keys[name]], -reached[name]["epoch"]))


def is_new_record_of_all(history: Sequence[Record], keys: dict[str, str], value: float) -> bool:
    """Whether a value of the last epoch is above those of all students and earlier epochs.

    Args:
        history: of the run.
        keys: student -> key of its top-1.
        value: of the last epoch.
    """
    before = [record[key] for record in history[:-1] for key in keys.values()]
    highest = max(record[key] for record in history for key in keys.values())
    return value == highest and highest not in before
