"""A plugin for tests: small images in four classes, and networks of a few hundred parameters.

  --plugin tests/tiny_data.py DATASET.TYPE tiny DISTILLER.TEACHER wide DISTILLER.STUDENT narrow

An epoch of `tiny` is 71 images of 3x8x8; with a batch size of 8, it has 9 steps. `tiny_folder`
reads an image folder. Tests name this file and never import it: it would be registered twice.
"""

from torch import nn
from torchvision.transforms import v2

from edkd.dataset.augment import CropFlip
from edkd.dataset.folder import Preprocessing, folder_dataset
from edkd.dataset.resident import resident_dataset
from edkd.registry import DATASETS, MODELS
from tests.small import TinyNet, tiny_images

FAMILY = "tiny"
MEAN = (0.5,) * 3
STD = (0.25,) * 3


@DATASETS.register("tiny", family=FAMILY)
def tiny(cfg, device):
    """71 images to train on, 24 to test on."""
    train = tiny_images(71)
    test = tiny_images(24, seed=1)
    return resident_dataset(cfg, device, train, test, CropFlip(padding=1), MEAN, STD)


@DATASETS.register("tiny_folder", family=FAMILY)
def tiny_folder(cfg, device):
    """The images of DATASET.ROOT, cropped to 8x8 and flipped."""
    preprocessing = Preprocessing(
        train=v2.Compose([v2.RandomCrop(8), v2.RandomHorizontalFlip(), v2.PILToTensor()]),
        test=v2.Compose([v2.CenterCrop(8), v2.PILToTensor()]),
        size=8,
        mean=MEAN,
        std=STD,
    )
    return folder_dataset(cfg, device, "tiny", preprocessing)


@MODELS.register("narrow", family=FAMILY)
def narrow(num_classes):
    """300 parameters."""
    return TinyNet(channels=6, num_classes=num_classes)


@MODELS.register("wide", family=FAMILY)
def wide(num_classes):
    """Twice as many."""
    return TinyNet(channels=12, num_classes=num_classes)


class Heavy(TinyNet):
    """As `narrow`, with 200,000 parameters that take room in a checkpoint."""

    def __init__(self, num_classes):
        super().__init__(channels=6, num_classes=num_classes)
        self.ballast = nn.Linear(400, 500)

    def forward(self, x):
        logits, features = super().forward(x)
        return logits + 0 * self.ballast.weight.sum(), features


MODELS.add("heavy", Heavy, family=FAMILY)
