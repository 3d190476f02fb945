"""Names of methods and keys that other systems have, so that they are not taken for typing errors.

Only names that are not registered here are looked up. Delete the line of a method when it arrives.
"""

from typing import NamedTuple


class _Elsewhere(NamedTuple):
    """A name of another system, for what edkd does not have."""

    system: str
    instead: str = ""
    """What serves the same purpose here, or one near it; "" for nothing."""


class _Synonym(NamedTuple):
    """The name in another system for what edkd has."""

    system: str
    here: str
    """A key and its value."""


_PAPER = "the code of its paper"

METHODS = {
    "AB": _Elsewhere("RepDistiller and torchdistill"),
    "ABKD": _Elsewhere(_PAPER),
    "ABOUND": _Elsewhere("RepDistiller"),
    "AFD": _Elsewhere("torchdistill"),
    "BANN": _Elsewhere("KD_Lib"),
    "CATKD": _Elsewhere(_PAPER),
    "CWD": _Elsewhere("mmrazor"),
    "DHKD": _Elsewhere(_PAPER),
    "DIFFKD": _Elsewhere(_PAPER),
    "FACTOR": _Elsewhere("RepDistiller"),
    "FCFD": _Elsewhere(_PAPER),
    "FSP": _Elsewhere("RepDistiller and torchdistill"),
    "FT": _Elsewhere("torchdistill"),
    "HND": _Elsewhere("torchdistill"),
    "HSAKD": _Elsewhere(_PAPER),
    "ICKD": _Elsewhere("torchdistill"),
    "ITRD": _Elsewhere(_PAPER),
    "LDRLD": _Elsewhere(_PAPER),
    "MEANTEACHER": _Elsewhere("KD_Lib"),
    "MGD": _Elsewhere("mmrazor"),
    "MRKD": _Elsewhere(_PAPER),
    "NOISYTEACHER": _Elsewhere("KD_Lib"),
    "PAD": _Elsewhere("torchdistill"),
    "PKD": _Elsewhere("torchdistill"),
    "RCO": _Elsewhere("KD_Lib"),
    "SELFTRAINING": _Elsewhere("KD_Lib"),
    "SEMCKD": _Elsewhere("SimKD"),
    "SRD": _Elsewhere("torchdistill"),
    "SSKD": _Elsewhere("torchdistill"),
    "TAKD": _Elsewhere("KD_Lib", "make two runs; the first one's student is the teacher"),
    "TEKAP": _Elsewhere(_PAPER),
    "TFKD": _Elsewhere("KD_Lib", "use SOLVER.LABEL_SMOOTHING, or DISTILLER.TYPE USKD"),
    "VITKD": _Elsewhere(_PAPER),
    "WSLD": _Elsewhere(_PAPER),
}
"""By their names in upper case, without "_" and "-"."""

SYNONYMS = {
    "ATTENTION": _Synonym("RepDistiller", "DISTILLER.TYPE AT"),
    "CCKD": _Synonym("torchdistill", "DISTILLER.TYPE CC"),
    "CORRELATION": _Synonym("RepDistiller", "DISTILLER.TYPE CC"),
    "DEEPKD": _Synonym(_PAPER, "SOLVER.TRAINER deepkd"),
    "DIST++": _Synonym("KD++", "DISTILLER.TYPE DIST+ND"),
    "DKD++": _Synonym("KD++", "DISTILLER.TYPE DKD+ND"),
    "DOT": _Synonym("mdistiller", "SOLVER.TRAINER dot"),
    "EAKD": _Synonym(_PAPER, "DISTILLER.EAKD True"),
    "FITNETS": _Synonym("torchdistill", "DISTILLER.TYPE FITNET"),
    "HINT": _Synonym("RepDistiller", "DISTILLER.TYPE FITNET"),
    "KD++": _Synonym(_PAPER, "DISTILLER.TYPE KD+ND"),
    "KR": _Synonym("torchdistill", "DISTILLER.TYPE REVIEWKD"),
    "LOGITSTAND": _Synonym(_PAPER, "DISTILLER.LSKD True"),
    "LSKD": _Synonym(_PAPER, "DISTILLER.LSKD True"),
    "MLLD": _Synonym(_PAPER, "DISTILLER.TYPE MLKD"),
    "OFA": _Synonym(_PAPER, "DISTILLER.TYPE OFAKD"),
    "REVIEWKD++": _Synonym("KD++", "DISTILLER.TYPE REVIEWKD+ND"),
    "SDDDKD": _Synonym(_PAPER, "DISTILLER.TYPE SDD"),
    "SDDKD": _Synonym(_PAPER, "DISTILLER.TYPE SDD"),
    "SDDNKD": _Synonym(_PAPER, "DISTILLER.TYPE SDD"),
    "SIMILARITY": _Synonym("RepDistiller", "DISTILLER.TYPE SP"),
    "SONLY": _Synonym("mdistiller", "DISTILLER.TYPE NONE"),
    "SPKD": _Synonym("torchdistill", "DISTILLER.TYPE SP"),
    "VANILLA": _Synonym("mdistiller", "DISTILLER.TYPE NONE"),
    "VANILLAKD": _Synonym("KD_Lib", "DISTILLER.TYPE KD"),
}
"""The same."""

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
    "LOGIT_STAND": _Elsewhere("the code of logit standardization", "use DISTILLER.LSKD"),
    "LR_COS": _Elsewhere("the code of DeepKD", "use SOLVER.SCHEDULE cosine"),
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
    """Return "; X is known from ...", with what edkd has instead, or "" for another name."""
    plain = name.upper().replace("_", "").replace("-", "")
    if plain in SYNONYMS:
        found = SYNONYMS[plain]
        return f"; {name} is known from {found.system}; here it is {found.here}"
    return _note(name, METHODS[plain]) if plain in METHODS else ""


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
