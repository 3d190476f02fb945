"""Small parts for the tests of the teacher cache."""

import torch
from torch import nn

from edkd.dataset.augment import CropFlip, Normalize
from edkd.dataset.resident import TrainLoader
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
