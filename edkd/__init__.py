"""edkd: knowledge distillation, in which a large trained teacher network teaches a small student.

The public functions are imported when they are first used, so that `import edkd` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edkd.api import distill, evaluate, load_config, train
    from edkd.distillers import dkd_loss, dml_loss, edkd_loss, kd_loss, register
    from edkd.models import get_model

_HOMES = {
    "distill": "edkd.api",
    "dkd_loss": "edkd.distillers",
    "dml_loss": "edkd.distillers",
    "edkd_loss": "edkd.distillers",
    "evaluate": "edkd.api",
    "get_model": "edkd.models",
    "kd_loss": "edkd.distillers",
    "load_config": "edkd.api",
    "register": "edkd.distillers",
    "train": "edkd.api",
}

__all__ = [
    "distill",
    "dkd_loss",
    "dml_loss",
    "edkd_loss",
    "evaluate",
    "get_model",
    "kd_loss",
    "load_config",
    "register",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
