"""Keys of a data set that are filled from a pretrained network."""

import pytest
import torch
from PIL import Image

from edkd.dataset import get_dataset
from edkd.engine.config.load import load_config
from edkd.engine.file_facts import facts_of
from edkd.engine.inputs import with_input
from edkd.errors import UserError
from edkd.types import InputSpec

SPEC = InputSpec((3, 240, 240), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), 256, "bicubic")


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            image = Image.new("RGB", (120, 120), (40 * number, 0, 0))
            image.save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(("key", "other"), [("MEAN", "STD"), ("STD", "MEAN")])
def test_a_mean_is_not_mixed_with_the_std_of_a_network(photos, key, other):
    words = ["DATASET.TYPE", "folder", "DATASET.ROOT", str(photos), "DATASET.NUM_WORKERS", "0"]
    words += ["DISTILLER.STUDENT", "ResNet18", f"DATASET.FOLDER.{key}", "[0.5,0.5,0.5]"]
    cfg = with_input(load_config(opts=words), SPEC)

    assert cfg.DATASET.FOLDER.SIZE == 240
    assert cfg.DATASET.FOLDER[other] == []
    with pytest.raises(UserError, match="MEAN and STD belong together"):
        get_dataset(cfg, torch.device("cpu"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"std": [0.1, 0.0, 0.1]},
        {"std": [0.1, float("nan"), 0.1]},
        {"mean": [float("inf"), 0.0, 0.0]},
        {"image_shape": [3, 0, 32]},
        {"resize": -1},
        {"padded_from": [28, 33]},
        {"padded_from": [28]},
        {"padded_from": [28, float("inf")]},
    ],
)
def test_what_no_images_can_be_is_not_taken_from_a_file(wrong):
    content = {"image_shape": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.1, 0.2, 0.3]}
    assert facts_of(content).input == InputSpec((3, 32, 32), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert facts_of(content | wrong).input is None
