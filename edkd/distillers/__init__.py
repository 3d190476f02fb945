"""Distillation methods, one file each. A new file in this folder is found automatically."""

import functools

from edkd.distillers._base import (
    Distiller,
    distiller_dict,
    networks_of,
    register,
    uses_published_style,
)
from edkd.distillers._combined import SEPARATOR, Combined, combine
from edkd.distillers._contract import explained
from edkd.distillers._head import find_classifier
from edkd.distillers._interface import (
    check_first_terms,
    check_switches,
    check_terms,
    checked_groups,
    construct,
    evaluation_logits,
    prepare_batch,
)
from edkd.distillers._layout import to_channels_last
from edkd.distillers._split import Split
from edkd.distillers._whole_batch import gather_batch, gather_outputs
from edkd.distillers.at import at_loss
from edkd.distillers.cc import cc_loss
from edkd.distillers.crd import crd_loss
from edkd.distillers.crld import crld_loss
from edkd.distillers.ctkd import ctkd_loss
from edkd.distillers.deit import deit_loss
from edkd.distillers.dist import dist_loss
from edkd.distillers.dkd import dkd_loss
from edkd.distillers.dml import dml_loss
from edkd.distillers.edkd import edkd_loss
from edkd.distillers.fitnet import fitnet_loss
from edkd.distillers.kd import kd_loss
from edkd.distillers.kdsvd import kdsvd_loss
from edkd.distillers.luminet import luminet_loss
from edkd.distillers.mlkd import mlkd_loss
from edkd.distillers.nd import nd_loss
from edkd.distillers.nkd import nkd_loss
from edkd.distillers.normkd import normkd_loss
from edkd.distillers.nst import nst_loss
from edkd.distillers.ofakd import ofakd_loss
from edkd.distillers.ofd import ofd_loss
from edkd.distillers.pkt import pkt_loss
from edkd.distillers.reviewkd import hcl_loss
from edkd.distillers.rkd import rkd_loss
from edkd.distillers.rld import rld_loss
from edkd.distillers.rsd import rsd_loss
from edkd.distillers.sdd import sdd_loss
from edkd.distillers.simkd import simkd_loss
from edkd.distillers.skd import skd_loss
from edkd.distillers.sp import sp_loss
from edkd.distillers.srrl import srrl_loss
from edkd.distillers.ttm import ttm_loss
from edkd.distillers.uskd import uskd_loss
from edkd.distillers.vid import vid_loss
from edkd.distillers.wkd import wkd_loss
from edkd.distillers.wttm import wttm_loss
from edkd.registry import METHODS, import_files

import_files(__name__, __path__, METHODS)


def method_names() -> list[str]:
    """The registered methods."""
    return METHODS.names()


def find_method(name: str) -> type[Distiller]:
    """The class of a DISTILLER.TYPE: a registered method, or several as in "KD+DKD".

    Raises:
        UserError: a name is unknown, or methods cannot be combined.
    """
    names = name.split(SEPARATOR)
    if len(names) == 1:
        return METHODS.find(name).value
    entries = [METHODS.find(part) for part in names]
    return _combined(tuple((entry.name, entry.value) for entry in entries))


def canonical_name(name: str) -> str:
    """A DISTILLER.TYPE in the case in which its methods are registered."""
    return SEPARATOR.join(METHODS.find(part).name for part in name.split(SEPARATOR))


@functools.cache
def _combined(methods: tuple[tuple[str, type[Distiller]], ...]) -> type[Distiller]:
    """Made once for the same names and classes; a class that was defined again makes a new one."""
    return combine([name for name, _ in methods])


__all__ = [
    "Combined",
    "Distiller",
    "Split",
    "at_loss",
    "canonical_name",
    "cc_loss",
    "check_first_terms",
    "check_switches",
    "check_terms",
    "checked_groups",
    "construct",
    "crd_loss",
    "crld_loss",
    "ctkd_loss",
    "deit_loss",
    "dist_loss",
    "distiller_dict",
    "dkd_loss",
    "dml_loss",
    "edkd_loss",
    "evaluation_logits",
    "explained",
    "find_classifier",
    "find_method",
    "fitnet_loss",
    "gather_batch",
    "gather_outputs",
    "hcl_loss",
    "kd_loss",
    "kdsvd_loss",
    "luminet_loss",
    "method_names",
    "mlkd_loss",
    "nd_loss",
    "networks_of",
    "nkd_loss",
    "normkd_loss",
    "nst_loss",
    "ofakd_loss",
    "ofd_loss",
    "pkt_loss",
    "prepare_batch",
    "register",
    "rkd_loss",
    "rld_loss",
    "rsd_loss",
    "sdd_loss",
    "simkd_loss",
    "skd_loss",
    "sp_loss",
    "srrl_loss",
    "to_channels_last",
    "ttm_loss",
    "uses_published_style",
    "uskd_loss",
    "vid_loss",
    "wkd_loss",
    "wttm_loss",
]
