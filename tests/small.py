"""Small parts for tests: a network of 300 parameters, 40 images of 3x8x8, a trainer of both."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from edkd.dataset import DataSet
from edkd.dataset.augment import CropFlip
from edkd.dataset.mixing import with_batch_augmentations
from edkd.dataset.resident import Images, resident_dataset
from edkd.distillers import Distiller, construct, find_method
from edkd.engine.build import build_trainer
from edkd.engine.config.load import load_config
from edkd.engine.memo.cache import attach
from edkd.engine.trainer import Trainer
from edkd.types import Batch, DataInfo, View

CPU = torch.device("cpu")
CLASSES = 4
IMAGE_SHAPE = (3, 8, 8)


class TinyNet(nn.Module):
    """A network under the contract, with a batch norm: two feature maps, four classes."""

    def __init__(self, channels: int = 6, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        stem = self.conv(x)
        preact = self.bn(stem)
        feat = F.relu(preact)
        pooled = feat.mean((2, 3))
        features = {"feats": [stem, feat], "preact_feats": [stem, preact], "pooled_feat": pooled}
        return self.fc(pooled), features


class StagedNet(nn.Module):
    """A network under the contract with a stem and three stages, and their batch norms."""

    def __init__(self, channels: int = 6, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.widths = [channels, channels, 2 * channels, 4 * channels]
        inputs = [3, *self.widths]
        strides = [1, 1, 2, 2]
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs[i], self.widths[i], 3, strides[i], padding=1) for i in range(4)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for width in self.widths)
        self.fc = nn.Linear(self.widths[-1], num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        feats = []
        preact_feats = []
        for conv, bn in zip(self.convs, self.bns, strict=True):
            preact = bn(conv(x))
            x = F.relu(preact)
            preact_feats.append(preact)
            feats.append(x)
        pooled = x.mean((2, 3))
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return self.fc(pooled), features

    def get_stage_channels(self) -> list[int]:
        return list(self.widths)

    def get_bn_before_relu(self) -> list[nn.Module]:
        return list(self.bns)[1:]


class TokenNet(TinyNet):
    """A TinyNet with a second head, as that of a distillation token."""

    def __init__(self, channels: int = 6, num_classes: int = CLASSES) -> None:
        super().__init__(channels, num_classes)
        self.fc_dist = nn.Linear(channels, num_classes)
        self.distilled_training = False

    def set_distilled_training(self, enable: bool = True) -> None:
        self.distilled_training = enable

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        logits, features = super().forward(x)
        logits_dist = self.fc_dist(features["pooled_feat"])
        if self.distilled_training and self.training:
            return logits, features | {"logits_dist": logits_dist}
        return (logits + logits_dist) / 2, features


def tiny_images(number: int = 40, seed: int = 0) -> Images:
    """Images whose class shows in the brightness of a channel."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(number) % CLASSES
    image = torch.randint(0, 160, (number, *IMAGE_SHAPE), generator=generator)
    image[:, 0] += 30 * target[:, None, None]
    return Images(image.clamp(max=255).byte(), target)


def noise_folder(root: Path, labels: Sequence[str], names: Sequence[str]) -> Path:
    """Write `root/{train,val}/<label>/<name>`: images of noise, each of 12x12 pixels."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in labels:
            folder = root / part / label
            folder.mkdir(parents=True)
            for name in names:
                pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name)
    return root


def config(*opts: object):
    """A configuration of two short epochs in float32, without wandb."""
    words = ["SOLVER.EPOCHS", 2, "SOLVER.BATCH_SIZE", 16, "SOLVER.LR_DECAY_STAGES", "[1]"]
    words += ["SOLVER.AMP", "off", "LOG.WANDB", "False", "DISTILLER.STUDENT", "TinyNet", *opts]
    names = {"student": ["TinyNet"] * 4, "teacher": ["TinyNet"]}
    return load_config(opts=[str(word) for word in words], networks=names)


def tiny_data(cfg, augmentations=None, device=CPU) -> DataSet:
    """40 images to train on, 24 to test on."""
    views = augmentations or CropFlip(padding=1)
    shape = dict(mean=(0.5,) * 3, std=(0.25,) * 3)
    return resident_dataset(cfg, device, tiny_images(40), tiny_images(24, seed=1), views, **shape)


def info(num_images: int = 40) -> DataInfo:
    """Facts about these images."""
    return DataInfo(CLASSES, num_images, torch.arange(num_images) % CLASSES, IMAGE_SHAPE)


def batch(number: int = 8, epoch: int = 1, seed: int = 1) -> Batch:
    """A batch of random images."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(number, *IMAGE_SHAPE, generator=generator)
    target = torch.randint(CLASSES, (number,), generator=generator)
    noise = 0.1 * torch.randn(number, *IMAGE_SHAPE, generator=generator)
    views = {"weak": View(image, None), "strong": View(image + noise, None)}
    return Batch(image, target, torch.arange(number), epoch, views)


def make_distiller(method: str | type[Distiller], *opts: object) -> Distiller:
    """A method with tiny networks; the teacher is wider than the student."""
    kind = method if isinstance(method, str) else "NONE"
    cfg = config("DISTILLER.TYPE", kind, *opts)
    cls = find_method(method) if isinstance(method, str) else method

    torch.manual_seed(0)
    network = network_for(cls)
    student = network()
    if cls.is_cohort:
        number = len(cls.student_names(cfg))
        student = nn.ModuleList([student, *(network() for _ in range(number - 1))])
    teacher = network(channels=12) if cls.needs_teacher else None
    distiller = construct(cls, student, teacher, cfg, info())

    if cls.collects:
        for seed in range(4):
            seen = batch(seed=seed)
            distiller.collect(distiller.run_teachers(seen), seen)
        distiller.end_collection()
    return distiller


def network_for(cls: type[Distiller]) -> type[nn.Module]:
    """A tiny network with the features that a method reads."""
    needs = {*cls.student_needs, *cls.teacher_needs}
    if "logits_dist" in needs:
        return TokenNet
    return StagedNet if needs & {"feats", "preact_feats"} else TinyNet


def make_trainer(
    method: str,
    folder: Path,
    *opts: object,
    change: Callable[[Distiller], None] = lambda distiller: None,
    checkpoint: dict | None = None,
    cached: bool = True,
    device: torch.device = CPU,
) -> Trainer:
    """A trainer of a method with tiny networks, ready for `train_step`.

    Args:
        change: called with the distiller before the trainer is made.
        cached: whether it has a teacher cache, filled for the first epoch.
    """
    cfg = config("DISTILLER.TYPE", method, "LOG.PREFIX", folder, *opts)
    data = with_batch_augmentations(tiny_data(cfg, device=device), cfg)
    distiller = make_distiller(method, *opts)
    data.train.use_views(distiller.views)
    change(distiller)
    trainer = build_trainer(cfg, data, distiller, folder, device, checkpoint)
    if cached and distiller.needs_teacher:
        trainer.train_step.cache = attach(
            distiller, data.train, cfg, device, trainer.amp, range(1, 2), lambda line: None
        )
        if trainer.train_step.cache:
            trainer.train_step.cache.prepare(1, lambda line: None)
    distiller.train()
    return trainer
