"""Interfaces known from mutual-learning and Hinton-style systems, on the parts of the engine.

For a new script, `edkd.distill` is the shorter way.
"""

from edkd.notebook.cohort import DML
from edkd.notebook.distiller import BaseDistiller
from edkd.notebook.examples import MLP, PseudoDataset
from edkd.notebook.hinton import HintonDistiller, KDLoss
from edkd.notebook.image_folders import prepare_dataloaders
from edkd.notebook.model_files import load_dml_models
from edkd.notebook.mutual import train_dml
from edkd.notebook.passes import (
    compute_dml_loss,
    evaluate_dml_models,
    evaluate_ensemble,
    train_epoch_dml,
    validate_dml,
)
from edkd.notebook.settings import DEFAULT_CONFIG, create_dml_config

__all__ = [
    "DEFAULT_CONFIG",
    "DML",
    "MLP",
    "BaseDistiller",
    "HintonDistiller",
    "KDLoss",
    "PseudoDataset",
    "compute_dml_loss",
    "create_dml_config",
    "evaluate_dml_models",
    "evaluate_ensemble",
    "load_dml_models",
    "prepare_dataloaders",
    "train_dml",
    "train_epoch_dml",
    "validate_dml",
]
