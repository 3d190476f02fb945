"""The protocol of a run: how it was trained, apart from its method."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from edkd.results.names import Values

PLAIN: Mapping[str, Any] = {
    "DATASET.TYPE": "",
    "DATASET.VAL_SPLIT": 0.0,
    "DATASET.RANDAUGMENT": [],
    "DATASET.RANDOM_ERASING": 0.0,
    "DATASET.VIEWS": 0,
    "DISTILLER.STUDENT_CKPT": "",
    "SOLVER.BATCH_SIZE": 64,
    "SOLVER.EPOCHS": 240,
    "SOLVER.LR": 0.05,
    "SOLVER.SCHEDULE": "step",
    "SOLVER.LR_DECAY_STAGES": [150, 180, 210],
    "SOLVER.LR_DECAY_RATE": 0.1,
    "SOLVER.WARMUP_EPOCHS": 0,
    "SOLVER.TYPE": "SGD",
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.DECAY_NORM_AND_BIAS": True,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.BETAS": [0.9, 0.999],
    "SOLVER.CLIP_GRAD_NORM": 0.0,
    "SOLVER.TRAIN_ONLY": "all",
    "SOLVER.HEAD_LR_FACTOR": 1.0,
    "SOLVER.TASK_LOSS": "ce",
    "SOLVER.BCE_THRESHOLD": 0.0,
    "SOLVER.MIXUP": 0.0,
    "SOLVER.CUTMIX": 0.0,
    "SOLVER.MIX_PROB": 1.0,
    "SOLVER.MIX_SWITCH_PROB": 0.5,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.EMA": 0.0,
}
"""Keys of a protocol, and the default that runs had which do not list a key.

These are the defaults of the configuration; only the data set has none.
"""

INITIAL_WEIGHTS = "DISTILLER.STUDENT_CKPT"
"""A student's initial weights: a file, which each seed may have of its own, or PRETRAINED."""

PRETRAINED = "pretrained"
"""The published weights, or the library's."""

GIVEN = "given"
"""Stands for all files."""

NAMED = (
    "DATASET.TYPE",
    "SOLVER.BATCH_SIZE",
    "SOLVER.EPOCHS",
    "SOLVER.LR",
    "SOLVER.SCHEDULE",
    "SOLVER.LR_DECAY_STAGES",
    "SOLVER.LR_DECAY_RATE",
    "SOLVER.TYPE",
    "SOLVER.WEIGHT_DECAY",
)
"""Keys that a description always covers."""

_PREFIXES = ("DATASET.", "SOLVER.")
"""Groups of which all other keys also belong to a protocol, where both runs have them."""

_OF_THE_METHOD = (
    "SOLVER.TRAINER",
    "SOLVER.DOT.",
    "SOLVER.DEEPKD.",
    "SOLVER.LABEL_SMOOTHING",
)
"""What a method's label shows instead."""

_TECHNICAL = (
    "SOLVER.AMP",
    "SOLVER.CUDA_GRAPH",
    "SOLVER.DETERMINISTIC",
    "SOLVER.SEED",
    "SOLVER.SYNC_BATCH_NORM",
    "SOLVER.CHECKPOINT_MINUTES",
    "SOLVER.PROCESS_TIMEOUT",
    "DATASET.ROOT",
    "DATASET.NUM_WORKERS",
    "DATASET.WORKER_TIMEOUT",
    "DATASET.PREFETCH",
    "DATASET.ON_BAD_IMAGE",
    "DATASET.RESIDENT_GB",
    "DATASET.TEST.BATCH_SIZE",
    "DATASET.LIST",
)
"""How a computer carries a run out."""


class Protocol(NamedTuple):
    """The settings that are not the method's own."""

    values: Values

    def differences(self, other: "Protocol") -> list[str]:
        """The keys in which two protocols differ.

        A key that one of the runs does not list had its default, where that is known; otherwise it
        does not count.
        """
        both = {**self.values, **other.values}
        return [key for key in both if self._differs(key, other)]

    def describe(self) -> str:
        """ "12 epochs, batch 64, SGD, lr 0.05 x0.1 after 7, 9, 11, weight decay 0.0005"."""
        values = self.values
        epochs = values["SOLVER.EPOCHS"]
        parts = [
            "1 epoch" if epochs == 1 else f"{epochs} epochs",
            f"batch {values['SOLVER.BATCH_SIZE']}",
            str(values["SOLVER.TYPE"]),
            f"lr {values['SOLVER.LR']}{self._schedule()}",
            f"weight decay {values['SOLVER.WEIGHT_DECAY']}",
        ]

        unusual = [key for key, plain in PLAIN.items() if values.get(key) != plain]
        for key in unusual:
            if key in values and key not in NAMED:
                parts.append(f"{key} {values[key]}")
        return ", ".join(parts)

    def _schedule(self) -> str:
        """How the learning rate falls."""
        if self.values["SOLVER.SCHEDULE"] != "step":
            return f" {self.values['SOLVER.SCHEDULE']}"
        stages = ", ".join(str(stage) for stage in self.values["SOLVER.LR_DECAY_STAGES"])
        rate = self.values["SOLVER.LR_DECAY_RATE"]
        return f" x{rate} after {stages}" if stages else " constant"

    def _differs(self, key: str, other: "Protocol") -> bool:
        is_known = key in self.values and key in other.values
        return is_known and self.values[key] != other.values[key]


def comparable(settings: Values) -> dict[str, Any]:
    """Settings as they are compared: whether a file has the initial weights, not which."""
    values = dict(settings)
    files = values.get(INITIAL_WEIGHTS)
    if files and files != PRETRAINED:
        values[INITIAL_WEIGHTS] = GIVEN
    return values


def protocol_of(settings: Values) -> Protocol:
    """The protocol of a run with these settings.

    Keys without an effect are left out, such as the momentum of another optimizer.
    """
    values = dict(PLAIN)
    for key, value in comparable(settings).items():
        belongs = key in PLAIN or key.startswith(_PREFIXES)
        if belongs and not key.startswith((*_OF_THE_METHOD, *_TECHNICAL)):
            values[key] = value

    for key in _without_effect(values):
        values.pop(key, None)
    if "SOLVER.LR_DECAY_STAGES" in values:
        values["SOLVER.LR_DECAY_STAGES"] = _stages(values)
    return Protocol(values)


def _without_effect(values: Values) -> list[str]:
    """Keys that other keys switch off."""
    is_mixed = bool(values["SOLVER.MIXUP"] or values["SOLVER.CUTMIX"])
    is_twice_mixed = bool(values["SOLVER.MIXUP"] and values["SOLVER.CUTMIX"])
    is_sgd = values["SOLVER.TYPE"] == "SGD"
    is_step = values["SOLVER.SCHEDULE"] == "step"
    is_folder = values["DATASET.TYPE"] == "folder"

    unused = {
        "SOLVER.MIX_PROB": not is_mixed,
        "SOLVER.MIX_SWITCH_PROB": not is_twice_mixed,
        "SOLVER.MOMENTUM": not is_sgd,
        "SOLVER.NESTEROV": not is_sgd,
        "SOLVER.BETAS": is_sgd,
        "SOLVER.LR_DECAY_STAGES": not is_step,
        "SOLVER.LR_DECAY_RATE": not is_step,
        "SOLVER.BCE_THRESHOLD": values["SOLVER.TASK_LOSS"] != "bce",
        "DATASET.TEST_SPLIT": not is_folder,
        "DATASET.SPLIT_SEED": not is_folder,
        "DATASET.VIEWS_SEED": not values["DATASET.VIEWS"],
    }
    return [key for key, is_unused in unused.items() if is_unused]


def _stages(values: Values) -> list[Any]:
    """The stages that a run reaches."""
    stages = values["SOLVER.LR_DECAY_STAGES"]
    return [stage for stage in stages if stage < values["SOLVER.EPOCHS"]]
