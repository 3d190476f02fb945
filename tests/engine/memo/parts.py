"""Small parts for the tests of the teacher cache."""

import torch
from torch import nn

from edkd.dataset.augment import CropFlip, Normalize
from edkd.dataset.resident import TrainLoader
from edkd.distillers import Distiller
from edkd.engine.memo.memo import MemoSettings, TeacherMemo
from tests.small import CPU, TinyNet, tiny_images


def make_teacher(seed=0):
    """A frozen network that counts its forward passes in `calls`."""
    torch.manual_seed(seed)
    teacher = TinyNet(channels=12).eval().requires_grad_(False)
    return counting(teacher)


def counting(network: nn.Module) -> nn.Module:
    """Count the forward passes of a network in its attribute `calls`, without a hook."""
    network.calls = 0
    forward = network.forward

    def count(*args, **kwargs):
        network.calls += 1
        return forward(*args, **kwargs)

    network.forward = count
    return network


def make_loader(num_images=40, seed=1, batch_size=16, views=None, **augmentations):
    """A loader of numbered views."""
    normalize = Normalize((0.5,) * 3, (0.25,) * 3, CPU)
    augmentations = {"weak": CropFlip(padding=1)} | augmentations
    images = tiny_images(num_images)
    members = torch.arange(num_images)
    loader = TrainLoader(images, members, augmentations, normalize, batch_size, seed)
    loader.use_views(views or ("weak",))
    return loader


def make_settings(folder, **changes):
    settings = MemoSettings(folder, 1e9, "auto", "tiny", "TinyNet")
    return settings._replace(**changes)


def make_memo(folder, teacher=None, loader=None, view="weak", amp=None, lines=None, **changes):
    """A memo in the cache `folder`; `changes` are settings."""
    teacher = teacher or make_teacher()
    loader = loader or make_loader()
    say = (lambda line: None) if lines is None else lines.append
    return TeacherMemo(teacher, loader, view, make_settings(folder, **changes), CPU, amp, say)


def quiet(line):
    """A log that drops its lines."""


# An augmentation, and methods that run the networks themselves.


class Roll:
    """A custom augmentation; its default repr differs from instance to instance."""

    num_views = 3

    def __init__(self, step=1):
        self.step = step

    def identity(self):
        return f"Roll(step={self.step})"

    def __call__(self, image, number):
        rolled = [image[i].roll(self.step * int(n), -1) for i, n in enumerate(number)]
        return torch.stack(rolled)


class Published(Distiller):
    """A method in the published style; `distil` is the part that differs."""

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)

    def forward_train(self, image, target, **kwargs):
        with torch.no_grad():
            loss = self.distil(image, **kwargs)
        logits, _ = self.student(image)
        return logits, {"loss": logits.mean() * (1 + loss)}


class ReadsLogits(Published):
    def distil(self, image, **kwargs):
        logits, _ = self.teacher(image)
        return logits.mean()


class HoldsTheTeacherTwice(Published):
    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.networks = torch.nn.ModuleList([student, teacher])

    def distil(self, image, **kwargs):
        return self.networks[1](image)[0].mean()


class OwnStep(Distiller):
    """Overrides the step of the preferred style."""

    def training_step(self, batch, turn=0):
        logits, _ = self.student(batch.image)
        return logits, {"loss": logits.mean() * self.teacher(batch.image)[0].mean()}


class ReadsFeatures(Published):
    def distil(self, image, **kwargs):
        return self.teacher(image)[1]["pooled_feat"].mean()
