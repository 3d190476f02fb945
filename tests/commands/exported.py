"""A run on digits for the tests of export and predict, and its test images as files."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from edkd.dataset import get_dataset
from edkd.engine.config.load import load_config
from tests.processes import Server

CPU = torch.device("cpu")

PLUGIN = """
import timm
import torchvision
from edkd.registry import MODELS

@MODELS.register("my_squeezenet", family="cifar")
def my_squeezenet(num_classes):
    return torchvision.models.squeezenet1_1(num_classes=num_classes)

@MODELS.register("my_mobilenet", family="cifar")
def my_mobilenet(num_classes):
    return torchvision.models.mobilenet_v3_small(num_classes=num_classes)

@MODELS.register("my_vit", family="cifar")
def my_vit(num_classes):
    size = dict(img_size=32, patch_size=8, depth=4)
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **size)
"""
"""Networks of libraries, which are wrapped to record their features."""


def train_digits(server: Server, prefix: Path, name: str, *opts: object) -> Path:
    """Train a resnet8 for an epoch or two; the folder of the run."""
    words = ["DATASET.TYPE", "digits", "DISTILLER.STUDENT", "resnet8", "SOLVER.AMP", "off"]
    words += ["SOLVER.EPOCHS", 2, "SOLVER.SCHEDULE", "cosine", "SOLVER.LR", 0.1]
    words += ["SOLVER.BATCH_SIZE", 32, "LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", 0]
    words += ["LOG.PREFIX", prefix, "EXPERIMENT.PROJECT", "digits", "EXPERIMENT.NAME", name]
    code, err = server.run("train", *words, *opts)
    assert code == 0, err
    return prefix / "digits" / name


def digits():
    """The data set, in float32 on the CPU."""
    cfg = load_config(opts=["DATASET.TYPE", "digits", "DISTILLER.STUDENT", "resnet8"])
    return get_dataset(cfg, CPU)


def write_digits(folder: Path) -> Path:
    """The test images as <folder>/<class>/<number>.png."""
    test = digits().test.images
    for number, (image, target) in enumerate(zip(test.image, test.target.tolist(), strict=True)):
        place = folder / str(target)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    return folder


def briefly_trained(network: nn.Module) -> nn.Module:
    """A network after 20 steps, which no longer gives all images the same logits."""
    torch.manual_seed(0)
    batch = digits().test.batch(torch.arange(128))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # some libraries take far more steps
    network.train()
    for _ in range(20):
        loss = F.cross_entropy(network(batch.image)[0], batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()
