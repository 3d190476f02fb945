"""Names of methods and keys that other systems have, so that they are not taken for typing errors.

Only names that are not registered here are looked up. Delete the line of a method when it arrives.
"""

from typing import NamedTuple


class _Elsewhere(NamedTuple):
    """A name of another system."""

    system: str
    instead: str = ""
    """What serves the same purpose here, or one near it; "" for nothing."""


_PLUGIN = "a file in mdistiller's style works with --plugin FILE"

METHODS = {
    "AB": _Elsewhere("RepDistiller and torchdistill"),
    "AFD": _Elsewhere("torchdistill"),
    "AT": _Elsewhere("mdistiller", _PLUGIN),
    "BANN": _Elsewhere("KD_Lib"),
    "CC": _Elsewhere("RepDistiller"),
    "CCKD": _Elsewhere("torchdistill"),
    "CRD": _Elsewhere("mdistiller"),
    "CTKD": _Elsewhere("the code of its paper"),
    "CWD": _Elsewhere("mmrazor"),
    "DIST": _Elsewhere("torchdistill"),
    "DOT": _Elsewhere("mdistiller", "use SOLVER.TRAINER dot, with any method"),
    "FACTOR": _Elsewhere("RepDistiller"),
    "FITNET": _Elsewhere("mdistiller", _PLUGIN),
    "FITNETS": _Elsewhere("torchdistill", _PLUGIN),
    "FSP": _Elsewhere("RepDistiller and torchdistill"),
    "FT": _Elsewhere("torchdistill"),
    "HINT": _Elsewhere("RepDistiller"),
    "HND": _Elsewhere("torchdistill"),
    "KDSVD": _Elsewhere("mdistiller", _PLUGIN),
    "LSKD": _Elsewhere("the code of its paper"),
    "MEANTEACHER": _Elsewhere("KD_Lib"),
    "MGD": _Elsewhere("mmrazor"),
    "MLKD": _Elsewhere("forks of mdistiller", _PLUGIN),
    "NKD": _Elsewhere("mmrazor"),
    "NOISYTEACHER": _Elsewhere("KD_Lib"),
    "NST": _Elsewhere("mdistiller", _PLUGIN),
    "OFD": _Elsewhere("mdistiller", _PLUGIN),
    "PAD": _Elsewhere("torchdistill"),
    "PKD": _Elsewhere("torchdistill"),
    "PKT": _Elsewhere("mdistiller", _PLUGIN),
    "RCO": _Elsewhere("KD_Lib"),
    "REVIEWKD": _Elsewhere("mdistiller", _PLUGIN),
    "RKD": _Elsewhere("mdistiller", _PLUGIN),
    "SELFTRAINING": _Elsewhere("KD_Lib"),
    "SEMCKD": _Elsewhere("SimKD"),
    "SIMILARITY": _Elsewhere("RepDistiller"),
    "SIMKD": _Elsewhere("the code of its paper"),
    "SONLY": _Elsewhere("mdistiller", "use DISTILLER.TYPE NONE"),
    "SP": _Elsewhere("mdistiller", _PLUGIN),
    "SPKD": _Elsewhere("torchdistill"),
    "SRD": _Elsewhere("torchdistill"),
    "SRRL": _Elsewhere("the code of its paper"),
    "SSKD": _Elsewhere("torchdistill"),
    "TAKD": _Elsewhere("KD_Lib", "make two runs; the first one's student is the teacher"),
    "TFKD": _Elsewhere("KD_Lib"),
    "VANILLA": _Elsewhere("mdistiller", "use DISTILLER.TYPE NONE"),
    "VANILLAKD": _Elsewhere("KD_Lib", "use DISTILLER.TYPE KD"),
    "VID": _Elsewhere("mdistiller", _PLUGIN),
    "WSLD": _Elsewhere("the code of its paper"),
}
"""By their names in upper case, without "_" and "-"."""

KEYS = {
    "AA": _Elsewhere("timm", "use DATASET.RANDAUGMENT"),
    "ACCUMULATE_GRAD_BATCHES": _Elsewhere("Lightning", "use SOLVER.ACCUMULATE"),
    "AUTO_AUGMENT": _Elsewhere("timm", "use DATASET.RANDAUGMENT"),
    "BCE_LOSS": _Elsewhere("timm", "use SOLVER.TASK_LOSS bce"),
    "CLIP_GRAD": _Elsewhere("timm", "use SOLVER.CLIP_GRAD_NORM"),
    "CLIP_MODE": _Elsewhere("timm"),
    "COLOR_JITTER": _Elsewhere("timm"),
    "DROP": _Elsewhere("timm"),
    "DROP_PATH": _Elsewhere("timm"),
    "GRADIENT_ACCUMULATION_STEPS": _Elsewhere("accelerate", "use SOLVER.ACCUMULATE"),
    "GRAD_ACCUM": _Elsewhere("timm", "use SOLVER.ACCUMULATE"),
    "GRAD_ACCUM_STEPS": _Elsewhere("timm", "use SOLVER.ACCUMULATE"),
    "GRAD_CLIP": _Elsewhere("Lightning", "use SOLVER.CLIP_GRAD_NORM"),
    "LAYER_DECAY": _Elsewhere("timm"),
    "LOGIT_STAND": _Elsewhere("the code of logit standardization"),
    "LR_SCHEDULER": _Elsewhere("torchdistill", "use SOLVER.SCHEDULE"),
    "MIN_LR": _Elsewhere("timm"),
    "MIXUP_PROB": _Elsewhere("timm", "use SOLVER.MIX_PROB"),
    "MIXUP_SWITCH_PROB": _Elsewhere("timm", "use SOLVER.MIX_SWITCH_PROB"),
    "MODEL_EMA": _Elsewhere("timm", "use SOLVER.EMA"),
    "MODEL_EMA_DECAY": _Elsewhere("timm", "use SOLVER.EMA"),
    "OPT": _Elsewhere("timm", "use SOLVER.TYPE"),
    "OPTIMIZER": _Elsewhere("torchdistill", "use SOLVER.TYPE"),
    "PATIENCE_EPOCHS": _Elsewhere("timm"),
    "REMODE": _Elsewhere("timm"),
    "REPROB": _Elsewhere("timm", "use DATASET.RANDOM_ERASING"),
    "SAM": _Elsewhere("forks of mdistiller"),
    "SCHED": _Elsewhere("timm", "use SOLVER.SCHEDULE"),
    "SMOOTHING": _Elsewhere("timm", "use SOLVER.LABEL_SMOOTHING"),
    "SYNC_BN": _Elsewhere("timm"),
    "WARMUP_LR": _Elsewhere("timm"),
    "WORKERS": _Elsewhere("timm", "use DATASET.NUM_WORKERS"),
}
"""By their last parts, in upper case."""


RENAMED = {
    "DATASET.UNREADABLE": "DATASET.ON_BAD_IMAGE",
}
"""Keys of earlier versions, and their names now."""


def method_note(name: str) -> str:
    """Return "; X is known from mdistiller; edkd does not have it", or "" for another name."""
    found = METHODS.get(name.upper().replace("_", "").replace("-", ""))
    return _note(name, found) if found else ""


def key_note(name: str) -> str:
    """The same for a full configuration key, or for a group that belongs to a method."""
    group, _, last = name.rpartition(".")
    found = KEYS.get(last.upper())
    if found:
        return _note(name, found)
    return "" if group else method_note(name)


def _note(name: str, found: _Elsewhere) -> str:
    note = f"; {name} is known from {found.system}; edkd does not have it"
    return f"{note}; {found.instead}" if found.instead else note
