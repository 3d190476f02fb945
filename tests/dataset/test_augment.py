"""Numbered views: equal to torchvision pixel by pixel, and told apart in the cache key."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as TF

from edkd.dataset.augment import Augmentation, CropFlip, Normalize, check_augmentation
from edkd.errors import UserError
from tests.dataset.shift import MEAN, STD, Shift, fingerprint

CPU = torch.device("cpu")


@pytest.mark.parametrize(("padding", "flip", "num_views"), [(4, True, 162), (2, False, 25)])
def test_every_view_equals_torchvision(padding, flip, num_views):
    views = CropFlip(padding, flip)
    assert views.num_views == num_views

    image = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    shown = views(image.expand(num_views, -1, -1, -1), torch.arange(num_views))
    ours = Normalize(MEAN, STD, CPU)(shown)

    padded = TF.pad(Image.fromarray(image[0].permute(1, 2, 0).numpy()), padding)
    published = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    for number in range(num_views):
        offset, is_flipped = divmod(number, 2) if flip else (number, 0)
        top, left = divmod(offset, 2 * padding + 1)
        crop = TF.crop(padded, top, left, 32, 32)
        expected = published(TF.hflip(crop) if is_flipped else crop)
        assert torch.equal(ours[number], expected)


def test_normalised_images_are_channels_last_float32():
    image = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    result = Normalize(MEAN, STD, CPU)(image)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_the_layout_in_memory_changes_no_bit():
    """Image folders come with channels last, and are normalised in another way."""
    image = torch.arange(256, dtype=torch.uint8).view(16, 16).expand(2, 3, 16, 16).contiguous()
    turned = image.contiguous(memory_format=torch.channels_last)
    normalize = Normalize(MEAN, STD, CPU)
    assert torch.equal(normalize(image), normalize(turned))
    assert normalize(image).stride() == normalize(turned).stride()


def test_a_batch_in_huge_pages_has_the_same_pixels():
    """Of 5 MB, so that it has whole huge pages, and a rest before and after them."""
    image = torch.randint(256, (9, 3, 215, 217), dtype=torch.uint8)
    turned = image.contiguous(memory_format=torch.channels_last)
    normalize = Normalize(MEAN, STD, CPU)
    assert torch.equal(normalize(image), normalize(turned))


def test_identity_tells_parameters_apart():
    """Objects with the default repr too: it is equal for none and never the same again."""
    prints = [fingerprint(Shift(1)), fingerprint(Shift(2)), fingerprint(CropFlip())]
    prints += [fingerprint(CropFlip(padding=2)), fingerprint(CropFlip(flip=False))]
    assert len(set(prints)) == len(prints)
    assert fingerprint(Shift(1)) == prints[0]
    assert fingerprint(CropFlip(), Shift(2)) == prints[1]


@pytest.mark.slow
def test_identity_is_the_same_in_another_process():
    code = "from tests.dataset.shift import Shift, fingerprint; print(fingerprint(Shift(1)))"
    command = [sys.executable, "-c", code]
    checkout = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert result.stdout.strip() == fingerprint(Shift(1)), result.stderr


class NoIdentity:
    num_views = 2

    def __call__(self, image, number):
        return image


class AddressIdentity(NoIdentity):
    def identity(self):
        return repr(self)

    def __call__(self, image, number):
        return image


class InheritedIdentity(Shift):
    def __call__(self, image, number):
        return image


class NoViews(Shift):
    num_views = 0


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (NoIdentity(), "NoIdentity of the view 'weak' needs num_views, identity"),
        (AddressIdentity(), "no memory address"),
        (InheritedIdentity(1), "inherits identity.. from Shift; define both"),
        (NoViews(1), "num_views 0; it must be a positive integer"),
        (lambda image, number: image, "needs num_views"),
    ],
)
def test_an_unusable_augmentation_is_refused(augmentation, message):
    with pytest.raises(UserError, match=message):
        check_augmentation("weak", augmentation)
    with pytest.raises(UserError, match=message):
        fingerprint(augmentation)


def test_the_protocol():
    assert isinstance(CropFlip(), Augmentation)
    assert isinstance(Shift(1), Augmentation)
