"""A teacher among data that are prepared in another way than the images it was trained on."""

import copy
import pickle

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as F

from edkd.distillers._features import feature_shapes
from edkd.engine.checkpoint import fingerprint
from edkd.engine.config.load import load_config
from edkd.engine.memo.cache import attach
from edkd.errors import UserError
from edkd.models import OwnInput, as_network, get_model
from edkd.types import InputSpec
from tests.small import CPU, TinyNet, config, tiny_data

DATA = InputSpec((3, 32, 32), (0.3, 0.4, 0.5), (0.2, 0.25, 0.3))
OTHER = InputSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3)


def normalised(pixels, spec):
    mean = torch.tensor(spec.mean)[:, None, None]
    std = torch.tensor(spec.std)[:, None, None]
    return (pixels.float() / 255 - mean) / std


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "resnet8"])
def test_the_output_is_that_on_images_prepared_its_own_way(pixels, name):
    plain = get_model("cifar", name, 5).eval()
    wrapped = OwnInput(plain, OTHER, DATA).eval()
    with torch.no_grad():
        expected, of_plain = plain(normalised(pixels, OTHER))
        logits, features = wrapped(normalised(pixels, DATA))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features["feats"], of_plain["feats"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        features["pooled_feat"], of_plain["pooled_feat"], atol=1e-4, rtol=1e-4
    )


class Same(nn.Module):
    """Returns its images as logits."""

    def forward(self, x):
        return x, {"feats": [x], "preact_feats": [], "pooled_feat": x.mean((2, 3))}


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(48, 48), (20, 24)])
def test_images_get_its_own_size_as_pillow_resizes_them(mode, size):
    small = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    pixels = (nn.functional.interpolate(small[None], (32, 32), mode="bilinear")[0] * 255).byte()
    own = InputSpec((3, *size), OTHER.mean, OTHER.std, 0, mode)
    image = OwnInput(Same(), own, DATA)(normalised(pixels, DATA)[None])[0][0]

    filters = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
    pillow = F.to_pil_image(pixels).resize(size[::-1], filters[mode])
    expected = normalised(F.pil_to_tensor(pillow), OTHER)
    assert image.shape == expected.shape
    difference = (image - expected).abs()
    if mode != "nearest":  # which takes other pixels at the centre of two
        assert difference.max() < 0.02  # Pillow rounds to bytes
    assert image.min() >= -1 - 1e-6
    assert image.max() <= 1 + 1e-6


def test_it_passes_for_the_network_itself():
    plain = as_network(get_model("cifar", "torchvision/resnet18", 5))
    wrapped = OwnInput(plain, OTHER, DATA)
    assert as_network(wrapped) is wrapped
    assert wrapped.fc is plain.module.fc
    assert list(wrapped.state_dict()) == list(plain.module.state_dict())

    # Also as a part of something larger, copied and pickled.
    outer = nn.ModuleDict({"teacher": wrapped})
    larger = {key: value + 1 for key, value in outer.state_dict().items()}
    outer.load_state_dict(larger)
    torch.testing.assert_close(dict(outer.state_dict()), larger)
    image = torch.randn(1, 3, 32, 32)
    wrapped.eval()
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(twin(image)[0], wrapped(image)[0])


def test_shapes_of_features_are_those_at_its_own_size():
    own = InputSpec((3, 64, 64), OTHER.mean, OTHER.std, 0, "bicubic")
    wrapped = OwnInput(get_model("cifar", "torchvision/resnet18", 5), own, DATA)
    shapes = feature_shapes(wrapped, (3, 32, 32))
    assert [shape[2] for shape in shapes.feats] == [32, 16, 8, 4, 2]


def test_channels_of_another_number():
    with pytest.raises(UserError, match="takes images of 3 channels, but those of the data have 1"):
        OwnInput(TinyNet(), OTHER, InputSpec((1, 32, 32), (0.5,), (0.5,)))


def test_another_preparation_is_another_cache(tmp_path):
    """The same weights with another normalisation or size: other logits, another folder."""
    cfg = config("DISTILLER.TYPE", "KD", "LOG.PREFIX", tmp_path)
    data = tiny_data(cfg)
    torch.manual_seed(0)
    plain = TinyNet()
    shape = data.info.image_shape
    owns = [
        InputSpec(shape, (0.5,) * 3, (0.5,) * 3),
        InputSpec(shape, (0.5,) * 3, (0.25001,) * 3),
        InputSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3),
        InputSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3, 0, "bicubic"),
    ]
    teachers = [plain, *(OwnInput(plain, own, data.info.input) for own in owns)]
    assert len({fingerprint(teacher) for teacher in teachers}) == len(teachers)

    from edkd.distillers import construct, find_method

    folders = []
    for teacher in teachers:
        distiller = construct(find_method("KD"), TinyNet(), teacher, cfg, data.info).train()
        batch = data.train.batch(*next(data.train.inputs(1)))
        live = distiller.training_step(batch)[1]
        cache = attach(distiller, data.train, cfg, CPU, None, range(1, 2), lambda line: None)
        cache.prepare(1, lambda line: None)
        cache.expect(batch)
        cached = distiller.training_step(batch)[1]
        torch.testing.assert_close(cached["loss_kd"], live["loss_kd"])
        folders.append(cache.memos[0].store.folder)
    assert len(set(folders)) == len(teachers)


def test_a_teacher_prepared_as_the_data_is_not_wrapped(tmp_path):
    from edkd.engine.build import build_data
    from edkd.engine.networks import load_teachers

    torch.manual_seed(0)
    file = tmp_path / "t.pth"
    words = ["DATASET.TYPE", "digits", "DISTILLER.TYPE", "KD", "DISTILLER.STUDENT", "resnet8"]
    words += ["DISTILLER.TEACHER", "resnet8", "DISTILLER.TEACHER_CKPT", str(file)]
    state = get_model("cifar", "resnet8", 10).state_dict()
    torch.save({"model": state}, file)
    cfg = load_config(opts=words)
    data = build_data(cfg, CPU)
    facts = {"image_shape": [3, 32, 32], "mean": list(data.info.mean), "std": list(data.info.std)}

    for content, is_wrapped in (({}, False), (facts, False), (facts | {"std": [1.0] * 3}, True)):
        torch.save({"model": state} | content, file)
        notes = []
        [teacher] = load_teachers(cfg, data, notes)
        assert isinstance(teacher, OwnInput) is is_wrapped
        assert bool(notes) is is_wrapped
