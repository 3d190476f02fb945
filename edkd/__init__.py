"""edkd: knowledge distillation, in which a large trained teacher network teaches a small student.

The public functions are imported when they are first used, so that `import edkd` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edkd.api import distill, evaluate, load_config, train
    from edkd.distillers import (
        at_loss,
        cc_loss,
        crd_loss,
        crld_loss,
        ctkd_loss,
        deit_loss,
        dist_loss,
        dkd_loss,
        dml_loss,
        edkd_loss,
        fitnet_loss,
        hcl_loss,
        kd_loss,
        kdsvd_loss,
        luminet_loss,
        mlkd_loss,
        nd_loss,
        nkd_loss,
        normkd_loss,
        nst_loss,
        ofakd_loss,
        ofd_loss,
        pkt_loss,
        register,
        rkd_loss,
        rld_loss,
        rsd_loss,
        sdd_loss,
        simkd_loss,
        skd_loss,
        sp_loss,
        srrl_loss,
        ttm_loss,
        uskd_loss,
        vid_loss,
        wkd_loss,
        wttm_loss,
    )
    from edkd.models import get_model

__all__ = [
    "at_loss",
    "cc_loss",
    "crd_loss",
    "crld_loss",
    "ctkd_loss",
    "deit_loss",
    "dist_loss",
    "distill",
    "dkd_loss",
    "dml_loss",
    "edkd_loss",
    "evaluate",
    "fitnet_loss",
    "get_model",
    "hcl_loss",
    "kd_loss",
    "kdsvd_loss",
    "load_config",
    "luminet_loss",
    "mlkd_loss",
    "nd_loss",
    "nkd_loss",
    "normkd_loss",
    "nst_loss",
    "ofakd_loss",
    "ofd_loss",
    "pkt_loss",
    "register",
    "rkd_loss",
    "rld_loss",
    "rsd_loss",
    "sdd_loss",
    "simkd_loss",
    "skd_loss",
    "sp_loss",
    "srrl_loss",
    "train",
    "ttm_loss",
    "uskd_loss",
    "vid_loss",
    "wkd_loss",
    "wttm_loss",
]

_HOMES = dict.fromkeys(__all__, "edkd.distillers") | {
    "distill": "edkd.api",
    "evaluate": "edkd.api",
    "get_model": "edkd.models",
    "load_config": "edkd.api",
    "train": "edkd.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
