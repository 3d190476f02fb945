"""Data sets by name: the built-in ones, and one of a user in a single file."""

import importlib.util

import pytest
import torch

from edkd.dataset import dataset_dict, get_dataset, register
from edkd.dataset._base import KEYS
from edkd.errors import UserError
from edkd.keys import Key, flatten
from edkd.registry import DATASETS

CPU = torch.device("cpu")

PLUGIN = '''
import torch

from edkd.dataset import register
from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.keys import Key


class Dim:
    """Darker images: view number n shows image // (n + 1)."""

    def __init__(self, levels):
        self.levels = levels

    @property
    def num_views(self):
        return self.levels

    def identity(self):
        return f"Dim({self.levels})"

    def __call__(self, image, number):
        return image // (number + 1).byte()[:, None, None, None]


@register("dots", family="cifar", defaults={"LEVELS": Key(3, "brightness levels", low=1)})
def dots(cfg, device):
    """Two classes, told apart by their brightness."""
    target = torch.arange(40) % 2
    image = (100 + 100 * target)[:, None, None, None].expand(40, 3, 8, 8).byte()
    images = Images(image, target)
    views = {"weak": CropFlip(padding=1), "strong": Dim(cfg.DATASET.DOTS.LEVELS)}
    return resident_dataset(cfg, device, images, images, views, (0.5,) * 3, (0.5,) * 3)
'''


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "dots.py"
    path.write_text(PLUGIN)
    spec = importlib.util.spec_from_file_location("dots_plugin", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield path
    DATASETS.remove("dots")


@pytest.fixture
def entered():
    names = set(DATASETS.names())
    yield
    for name in set(DATASETS.names()) - names:
        DATASETS.remove(name)


def test_a_data_set_is_one_file(config, plugin):
    entry = DATASETS.find("Dots")
    assert DATASETS.node_of(entry) == "DATASET.DOTS"
    assert dict(flatten(entry.defaults, f"{DATASETS.node_of(entry)}.")).keys() == {
        "DATASET.DOTS.LEVELS"
    }

    cfg = config(DATASET__TYPE="dots", SOLVER__BATCH_SIZE=16)
    cfg.DATASET.DOTS = type(cfg)({"LEVELS": 3})
    data = get_dataset(cfg, CPU)
    assert (data.num_classes, data.info.image_shape) == (2, (3, 8, 8))

    data.train.use_views(("weak", "strong"))
    _, numbers = data.train.order(1)
    assert set(numbers["strong"].tolist()) == {0, 1, 2}
    batch = next(data.train.epoch(1))
    strong = batch.views["strong"]
    pixels = (100 + 100 * batch.target) // (strong.number + 1)
    assert torch.equal(strong.image[:, 0, 0, 0], (pixels / 255 - 0.5) / 0.5)
    assert data.train.fingerprint("weak") != data.train.fingerprint("strong")


def test_the_published_dictionary(entered):
    assert set(dataset_dict) >= {"cifar10", "cifar100", "digits", "imagenet", "tiny_imagenet"}
    spec = dataset_dict["cifar100"]
    assert (spec.family, spec.has_published_weights) == ("cifar", True)
    assert dataset_dict["digits"].has_published_weights is False

    dataset_dict["copy"] = spec
    assert dataset_dict["copy"] == spec
    assert DATASETS.find("copy").value is spec.load

    register("plain")(lambda cfg, device: None)
    assert (dataset_dict["plain"].family, dataset_dict["plain"].has_published_weights) == (
        "cifar",
        False,
    )


def test_an_unknown_name_gets_the_nearest_one(config):
    with pytest.raises(UserError, match="unknown data set 'digit', did you mean 'digits'"):
        get_dataset(config(DATASET__TYPE="digit"), CPU)


def test_a_function_of_another_form_is_refused(config, entered):
    with pytest.raises(UserError, match="must be a function"):
        register("wrong")(3)
    register("nothing")(lambda cfg, device: None)
    with pytest.raises(UserError, match="must return an edkd.dataset.DataSet, not NoneType"):
        get_dataset(config(DATASET__TYPE="nothing"), CPU)


def test_every_built_in_data_set_is_one_file():
    for name, spec in dataset_dict.items():
        file = "image_folder" if name == "folder" else name  # folder.py reads all image folders
        assert spec.load.__module__ == f"edkd.dataset.{file}"
        assert spec.load.__doc__


def test_keys():
    assert all(isinstance(key, Key) for key in KEYS.values())
    assert {name for name, key in KEYS.items() if key.free_on_resume} == {
        "DATASET.ROOT",
        "DATASET.NUM_WORKERS",
        "DATASET.WORKER_TIMEOUT",
        "DATASET.PREFETCH",
        "DATASET.ON_BAD_IMAGE",
        "DATASET.TEST.BATCH_SIZE",
        "DATASET.TEST.EVALUATE",
    }
    unnamed = [name for name, key in KEYS.items() if not key.names_run]
    assert unnamed == ["DATASET.ROOT", "DATASET.ON_BAD_IMAGE"]
    assert not any(key.problem(key.default) for key in KEYS.values())
    assert KEYS["DATASET.VAL_SPLIT"].problem(1.0)
