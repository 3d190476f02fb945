"""The settings of `train_dml`: their defaults, types and ranges."""

from pathlib import Path
from typing import Any

from edkd.errors import UserError
from edkd.hints import hint, not_one_of

NETWORKS = ("ResNet20", "ResNet32", "ResNet44", "ResNet56", "ResNet110")

DEFAULT_CONFIG: dict[str, Any] = {
    "model": "ResNet32",  # one of NETWORKS, or a list of them, one for each model
    "data_dir": "./data",  # has train/, val/ and perhaps test/, with one folder for each class
    "batch_size": 32,
    "num_workers": 4,  # processes that read images
    "augment": False,  # random crops, flips, rotations and colours
    "epochs": 200,
    "lr": 0.1,  # learning rate of SGD at the start
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "step_size": 60,  # epochs after which the learning rate falls, again and again
    "gamma": 0.1,  # factor of each fall
    "model_num": 2,  # number of models, >= 2
    "num_classes": None,  # None: the number of `classes` of the training set
    "seed": 1,  # of the weights and of the order of the images
    "device": "auto",  # auto, cpu, cuda, cuda:N, mps
    "print_freq": 10,  # epochs between two lines on the screen; the log has all
    "save_freq": 10,  # epochs between two numbered checkpoints; 0: none
    "save_dir": "checkpoints",
    "log_dir": "logs",
    "experiment_name": None,  # None: made of the model and the time
    "resume": None,  # <experiment>_model<i>_<tag>.pth, of any of the models
}

LOWEST = {
    "model_num": 2,
    "epochs": 1,
    "batch_size": 1,
    "step_size": 1,
    "print_freq": 1,
    "num_classes": 2,
    "save_freq": 0,
    "num_workers": 0,
    "lr": 0,
    "momentum": 0,
    "weight_decay": 0,
    "gamma": 0,
    "seed": 0,
}

FREE_ON_RESUME = (
    "epochs",
    "device",
    "print_freq",
    "save_freq",
    "num_workers",
    "data_dir",
    "save_dir",
    "log_dir",
    "experiment_name",
    "resume",
)
"""Settings that a resumed run may have otherwise."""

_TYPES_OF_NONE = {"num_classes": int, "experiment_name": str, "resume": str}
"""Types of the settings whose default is None."""


def create_dml_config(**kwargs: Any) -> dict[str, Any]:
    """DEFAULT_CONFIG with other values for some settings.

    Raises:
        UserError: a name is unknown, or a value is of another type or out of its range.
    """
    for name in kwargs:
        if name not in DEFAULT_CONFIG:
            raise UserError(f"unknown setting {name}{hint(name, DEFAULT_CONFIG)}")
    config = DEFAULT_CONFIG | {name: _typed(name, value) for name, value in kwargs.items()}

    if isinstance(config["model"], list) and kwargs.get("model_num") is None:
        config["model_num"] = len(config["model"])
    _check_networks(config)
    if config["experiment_name"]:
        _check_name(config["experiment_name"])

    for name, low in LOWEST.items():
        value = config[name]
        if value is not None and not value >= low:
            raise UserError(f"{name} is {value}, but must be at least {low}")
    return config


def _check_networks(config: dict[str, Any]) -> None:
    names = network_names(config)
    for model in names:
        if model not in NETWORKS:
            raise UserError(not_one_of("model", model, NETWORKS))
    if isinstance(config["model"], list) and len(names) != config["model_num"]:
        raise UserError(
            f"model has {len(names)} networks, but model_num is {config['model_num']}; leave "
            "model_num out"
        )


def _check_name(name: str) -> None:
    if Path(name).name != name:
        raise UserError(
            f"experiment_name is {name!r}, but must be a name without folders; save_dir is the "
            "setting for the folder"
        )
    if len(name.encode()) > 200:
        raise UserError(f"experiment_name is too long ({name[:40]!r}...); give a shorter one")


def network_names(config: dict[str, Any]) -> list[str]:
    """The network of each model of a configuration."""
    model = config["model"]
    return list(model) if isinstance(model, list) else [model] * max(config["model_num"], 1)


def _typed(name: str, value: Any) -> Any:
    """A value in the type of its default, so that a checkpoint can hold it; or UserError."""
    if name == "model" and isinstance(value, (list, tuple)):
        return [str(each) for each in value]
    default = DEFAULT_CONFIG[name]
    kind = _TYPES_OF_NONE.get(name, type(default))
    if value is None and default is None:
        return None
    if kind is str:
        return str(value)

    try:
        is_fraction = kind is int and value != int(value)
        if isinstance(value, str) or is_fraction:
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name} is {value!r}, not of type {kind.__name__}") from None
