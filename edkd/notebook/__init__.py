"""Loops that a person drives by hand, in a script or a notebook, with networks and DataLoaders of their own."""

from edkd.notebook.cohort import DML
from edkd.notebook.hinton import MLP, BaseDistiller, HintonDistiller, KDLoss, PseudoDataset
from edkd.notebook.mutual import (
    DEFAULT_CONFIG,
    compute_dml_loss,
    create_dml_config,
    evaluate_dml_models,
    evaluate_ensemble,
    load_dml_models,
    prepare_dataloaders,
    train_dml,
    train_epoch_dml,
    validate_dml,
)

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
