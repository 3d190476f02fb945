"""Scaled decoding: the crops, flips and images of full decoding, for every kind of file."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from edkd.dataset import get_dataset, stored_image
from edkd.dataset.file_images import FolderImages
from edkd.dataset.folder_views import Item
from edkd.dataset.images import read_image
from edkd.dataset.scaled import ScaledTransform, scaled
from edkd.dataset.stored_image import StoredImage, Undecodable
from edkd.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding")

CPU = torch.device("cpu")
SIZE = 48
CROP = [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()]
SEEDS = range(6)


def photograph(width=400, height=300):
    """Smooth colours that differ in all corners, and a dark disc: no symmetry."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [x, y, 0.5 + 0.5 * np.sin(9 * x + 5 * y * y)]
    disc = (x - 0.3) ** 2 + (y - 0.7) ** 2 < 0.03
    pixels = np.stack(waves, -1) * np.where(disc, 0.2, 1.0)[..., None]
    return Image.fromarray((255 * pixels).astype(np.uint8))


def deep(image):
    """A gray image of 16 bits."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def palette(image):
    """A palette with a transparent colour."""
    few = image.quantize(32)
    few.info["transparency"] = 3
    return few


def exif(orientation):
    data = Image.Exif()
    data[274] = orientation
    return {"exif": data}


FILES = {
    "rgb.jpg": (lambda image: image, {}),
    "progressive.jpg": (lambda image: image, {"progressive": True}),
    "no subsampling.jpg": (lambda image: image, {"subsampling": 0}),
    "gray.jpg": (lambda image: image.convert("L"), {}),
    "cmyk.jpg": (lambda image: image.convert("CMYK"), {}),
    "nonsense exif.jpg": (lambda image: image, {"exif": b"Exif\0\0nonsense"}),
    "two.mpo": (lambda image: image, {"save_all": True, "append_images": [photograph(40, 30)]}),
    "palette.png": (palette, {}),
    "deep.png": (deep, {}),
    "alpha.webp": (lambda image: image.convert("RGBA"), {}),
} | {f"turned {number}.jpg": (lambda image: image, exif(number)) for number in range(2, 9)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The paths of these files, by their names."""
    folder = tmp_path_factory.mktemp("files")
    for name, (change, settings) in FILES.items():
        change(photograph()).save(folder / name, quality=95, **settings)
    return {name: folder / name for name in FILES}


def drawn(transform, image, seed):
    """A view, and the state of the generator after it."""
    torch.manual_seed(seed)
    return transform(image).int(), torch.get_rng_state()


def distance(a, b):
    return (a - b).abs().float().mean().item()


# The images.


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [24, SIZE])
def test_views_are_those_of_full_decoding(files, name, size):
    """Same crop, flip and orientation at all scales; exact to 1 of 255 at full scale."""
    full = v2.Compose([v2.RandomResizedCrop(size), *CROP[1:]])
    fast = scaled(full)
    seen = set()
    for seed in SEEDS:
        stored, divisors = watched(files[name])
        view, state = drawn(fast, stored, seed)
        expected, expected_state = drawn(full, read_image(files[name]), seed)
        seen |= set(divisors)

        assert torch.equal(state, expected_state)
        assert view.shape == expected.shape
        if divisors == [1]:
            assert (view - expected).abs().max() <= 1
        mirrored = min(distance(view, expected.flip(1)), distance(view, expected.flip(2)))
        assert distance(view, expected) < min(9, mirrored / 3)

    largest = {24: 8, SIZE: 4}[size] if name.endswith((".jpg", ".mpo")) else 1
    assert max(seen) == largest


def watched(path):
    """A stored image, and a list that gets the divisors with which it is cropped."""
    stored = StoredImage(path)
    crop = stored.crop
    divisors = []

    def watch(box, divisor):
        divisors.append(divisor)
        return crop(box, divisor)

    stored.crop = watch
    return stored, divisors


@pytest.mark.parametrize("name", ["rgb.jpg", "progressive.jpg", "no subsampling.jpg"])
def test_torchvision_and_pil_decode_the_same(files, name, monkeypatch):
    """So it does not matter which of them decodes; without torchvision's decoder, PIL does."""
    box = (10, 20, 211, 175)
    stored = StoredImage(files[name])
    by_torchvision = stored.crop(box)
    assert stored._rows is not None

    def fails(data):
        raise RuntimeError("not compiled with libjpeg")

    for decoder in (None, fails):
        monkeypatch.setattr(stored_image, "_jpeg_decoder", lambda decoder=decoder: decoder)
        stored = StoredImage(files[name])
        assert torch.equal(stored.crop(box), by_torchvision)
        assert stored._rows is None


def test_the_decoded_crop_is_at_least_as_large_as_the_result(files):
    """And less than twice as large, where there is a smaller scale."""
    for seed in range(20):
        stored, divisors = watched(files["rgb.jpg"])
        drawn(scaled(v2.Compose(CROP)), stored, seed)
        torch.manual_seed(seed)
        box = CROP[0].make_params([torch.empty(3, 300, 400)])

        shorter = min(box["height"], box["width"])
        (divisor,) = divisors
        assert divisor == 1 or shorter / divisor >= SIZE
        assert divisor == 8 or shorter / (2 * divisor) < SIZE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_pixels_are_upright(tmp_path, orientation, divisor):
    """Also where the size is no multiple of the divisor."""
    photograph(403, 301).save(tmp_path / "a.jpg", quality=95, **exif(orientation))
    stored = StoredImage(tmp_path / "a.jpg")
    whole = read_image(tmp_path / "a.jpg")
    assert stored.size == whole.size

    pixels = stored.pixels(divisor)
    assert pixels.size == tuple(-(-side // divisor) for side in whole.size)
    expected = np.asarray(whole.resize(pixels.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(pixels) - expected).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 2)])
def test_tiny_and_narrow_images(tmp_path, size):
    path = tmp_path / "a.jpg"
    photograph().resize(size).save(path)
    for seed in SEEDS:
        view, state = drawn(scaled(v2.Compose(CROP)), StoredImage(path), seed)
        expected, expected_state = drawn(v2.Compose(CROP), read_image(path), seed)
        assert torch.equal(state, expected_state)
        assert (view - expected).abs().max() <= 1


# Which transforms.


@pytest.mark.parametrize(
    "first",
    [
        v2.Resize(SIZE),
        v2.Resize((SIZE, SIZE)),
        v2.RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC),
    ],
)
@pytest.mark.parametrize("later", [[], [v2.RandAugment(2, 9)], [v2.RandomRotation(20)]])
def test_other_transforms_follow(files, first, later):
    """They get an image of PIL, as without scaled decoding, and draw the same."""
    full = v2.Compose([first, v2.CenterCrop(SIZE), *later, v2.PILToTensor()])
    fast = scaled(full)
    assert isinstance(fast, ScaledTransform)
    for seed in SEEDS:
        view, state = drawn(fast, StoredImage(files["turned 6.jpg"]), seed)
        expected, expected_state = drawn(full, read_image(files["turned 6.jpg"]), seed)
        assert torch.equal(state, expected_state)
        assert distance(view, expected) < 12


@pytest.mark.parametrize(
    "transform",
    [
        v2.PILToTensor(),
        v2.Compose([v2.PILToTensor()]),
        v2.Compose([v2.RandomRotation(20), v2.PILToTensor()]),
        v2.Compose([v2.Resize(SIZE, InterpolationMode.NEAREST), v2.PILToTensor()]),
        v2.Compose([v2.Resize(SIZE, max_size=64), v2.PILToTensor()]),
    ],
)
def test_transforms_that_stay_as_they_are(transform):
    assert scaled(transform) is transform


def test_a_transform_describes_itself():
    text = repr(scaled(v2.Compose(CROP)))
    assert "RandomResizedCrop(size=(48, 48)" in text
    assert "RandomHorizontalFlip(p=0.5)" in text
    assert " at 0x" not in text


# Bad files.


@pytest.mark.parametrize("size", [SIZE, 350], ids=["scaled", "in full"])
@pytest.mark.parametrize("kept", [0, 30, 600, 5000, 9000])
def test_bad_files_have_the_same_reason(files, tmp_path, size, kept):
    """Empty, without a header, cut in the header, cut in the pixels."""
    path = tmp_path / "a.jpg"
    path.write_bytes(files["rgb.jpg"].read_bytes()[:kept])
    steps = [v2.RandomResizedCrop(size, scale=(0.9, 1)), *CROP[1:]]
    full, fast = (
        FolderImages([(str(path), 0)], transform)
        for transform in (v2.Compose(steps), scaled(v2.Compose(steps)))
    )
    bad = fast[Item(0, 1)]
    assert bad == full[Item(0, 1)]
    assert bad.path == str(path)


def test_a_damaged_image_fails_each_time(files, tmp_path):
    """Several views may be made of one stored image."""
    path = tmp_path / "a.jpg"
    path.write_bytes(files["rgb.jpg"].read_bytes()[:9000])
    stored = StoredImage(path)
    for divisor in (4, 4, 1, 1):
        with pytest.raises(Undecodable, match="image file is truncated"):
            stored.crop((0, 0, 60, 60), divisor)


def test_an_image_of_too_many_pixels_has_the_same_reason(files, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    samples = [(str(files["rgb.jpg"]), 0)]
    bad = FolderImages(samples, scaled(v2.Compose(CROP)))[Item(0, 1)]
    assert bad.reason == "its 120000 pixels are more than 2000; scale it down"
    assert bad == FolderImages(samples, v2.Compose(CROP))[Item(0, 1)]


def test_a_transform_that_fails_is_no_bad_file(files):
    steps = [v2.RandomResizedCrop(SIZE), v2.RandomCrop(64), v2.PILToTensor()]
    bad = FolderImages([(str(files["rgb.jpg"]), 0)], scaled(v2.Compose(steps)))[Item(0, 1)]
    assert bad.reason.startswith("the transforms of the data set fail for its 400x300 pixels")


# The data sets.


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes, 3 + 1 JPEG files each, one of them turned by its EXIF data."""
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 3), ("val", 1)):
        for place, name in enumerate(("a", "b")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = photograph(600 + 40 * number, 500).rotate(90 * place)
                settings = exif(6) if number == 1 else {}
                image.save(root / part / name / f"{number}.jpg", quality=90, **settings)
    return root


@pytest.fixture
def load(config, photos):
    def load(kind="imagenet", **changes):
        names = {"DATASET__TYPE": kind, "DATASET__ROOT": str(photos), "DATASET__NUM_WORKERS": 0}
        return get_dataset(config(**names | {"SOLVER__BATCH_SIZE": 4} | changes), CPU)

    return load


def pixels(loader):
    """The images of an epoch, in [0, 255] where they were not normalised away from it."""
    return torch.cat([batch.image for batch in loader.epoch(1)])


def test_the_key_selects_how_training_images_are_decoded(load):
    exact = load(DATASET__SCALED_DECODING=False)
    fast = load()
    assert not torch.equal(pixels(fast.train), pixels(exact.train))
    assert distance(pixels(fast.train), pixels(exact.train)) < 0.05
    assert torch.equal(pixels(fast.test), pixels(exact.test))


def test_evaluation_decodes_in_full(load, photos):
    """As the published protocol: its accuracies stay what they are."""
    data = load()
    published = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    paths = sorted((photos / "val").rglob("*.jpg"))
    expected = torch.stack([published(read_image(path)) for path in paths])
    assert torch.equal(pixels(data.test), data.test.normalize(expected))


def test_the_number_of_workers_changes_nothing(load):
    fast = [pixels(load(DATASET__NUM_WORKERS=workers).train) for workers in (0, 1)]
    assert torch.equal(*fast)


@pytest.mark.parametrize("form", ["published", "torchvision"])
def test_both_views_of_an_image(load, form):
    """The strong view has a crop of its own, which may need another scale."""
    found = []
    for is_scaled in (True, False):
        train = load(DATASET__SCALED_DECODING=is_scaled, DATASET__STRONG_FORM=form).train
        train.use_views(("weak", "strong"))
        found.append(next(train.epoch(1)))
    fast, exact = found
    assert distance(fast.views["weak"].image, exact.views["weak"].image) < 0.05
    assert distance(fast.views["strong"].image, exact.views["strong"].image) < 0.15


@pytest.mark.parametrize("is_scaled", [True, False])
def test_a_file_that_breaks_is_named_or_replaced(load, photos, tmp_path, capsys, is_scaled):
    import shutil

    root = shutil.copytree(photos, tmp_path / "photos")
    bad = root / "train" / "b" / "2.jpg"
    keys = {"DATASET__ROOT": str(root), "DATASET__SCALED_DECODING": is_scaled}
    stop, other = load(**keys).train, load(**keys, DATASET__ON_BAD_IMAGE="replace").train
    bad.write_bytes(bad.read_bytes()[:4000])

    with pytest.raises(UserError, match=rf"cannot read 1 of 8 images: {bad} \(image file is trunc"):
        list(stop.epoch(1))
    assert len(pixels(other)) == 6
    assert "another image of its class replaces it" in capsys.readouterr().err
