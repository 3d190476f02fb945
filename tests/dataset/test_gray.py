"""Gray images of a plugin, for networks of three channels."""

import pytest
import torch

from edkd.dataset.resident import Images
from edkd.errors import UserError
from edkd.registry import DATASETS
from tests.runs import records

GRAY = '''
import torch

from edkd.dataset import register
from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset


@register("gray", family="tiny")
def gray(cfg, device):
    """Four classes, told apart by their brightness."""
    target = torch.arange(64) % 4
    image = (60 * target)[:, None, None].expand(64, 6, 6).byte()
    images = Images.from_gray(image, target, size=8)
    views = CropFlip(padding=1)
    return resident_dataset(cfg, device, images, images, views, (0.5,) * 3, (0.5,) * 3)
'''


def test_gray_images():
    gray = torch.arange(2 * 5 * 4, dtype=torch.uint8).reshape(2, 5, 4)
    target = torch.tensor([0, 1])
    image = Images.from_gray(gray, target, size=8).image
    assert image.shape == (2, 3, 8, 8)
    assert torch.equal(image[:, 1, 1:6, 2:6], gray)
    assert image.sum() == 3 * gray.sum()
    assert torch.equal(Images.from_gray(gray[:, None], target).image[:, 2], gray)

    assert Images.from_gray(gray, target, size=8).to(torch.device("cpu")).padded_from == (5, 4)
    assert Images.from_gray(gray, target).padded_from is None

    with pytest.raises(
        UserError, match=r"gray images are torch.float32 .*\(N,H,W\) or \(N,1,H,W\)"
    ):
        Images.from_gray(gray.float(), target)
    with pytest.raises(UserError, match=r"must be torch.uint8 of shape"):
        Images.from_gray(image, target)
    with pytest.raises(UserError, match="images of 5x4 pixels do not fit into 4x4"):
        Images.from_gray(gray, target, size=4)


def test_a_plugin_trains_a_network_of_three_channels_on_gray_images(tool, tiny, tmp_path):
    plugin = tmp_path / "gray.py"
    plugin.write_text(GRAY)
    try:
        words = [*tiny[:-1], "--plugin", plugin, "DATASET.TYPE", "gray", "SOLVER.LR", 0.5]
        done = tool("train", *words, "EXPERIMENT.NAME", "run")
    finally:
        DATASETS.remove("gray")
    assert (done.code, done.err) == (0, "")
    assert records(tmp_path / "distill" / "run")[-1]["test_top1"] > 40
