"""How models are found: by family and name, with weights and keys of their own."""

import functools

import pytest
import torch
from torch import nn
from yacs.config import CfgNode

from edkd import models
from edkd.errors import UserError
from edkd.keys import Key
from edkd.models import get_model, published_weights
from edkd.paths import DATA_ROOT
from edkd.registry import MODELS

WEIGHTS = DATA_ROOT / "download_ckpts"


class Narrow(nn.Module):
    """A model as a plugin has it: it returns logits alone."""

    def __init__(self, num_classes: int, width: int, head: dict) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, num_classes, bias=head["BIAS"])

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


DEFAULTS = dict(WIDTH=Key(4, "channels", low=1), HEAD=dict(BIAS=True))


def test_a_model_with_keys_of_its_own():
    MODELS.register("narrow", family="cifar", weights="~/narrow.pth", defaults=DEFAULTS)(Narrow)

    model = get_model("cifar", "narrow", 5)
    logits, features = model(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 5)
    assert features["pooled_feat"].shape == (2, 4)
    assert list(model.state_dict()) == ["conv.weight", "conv.bias", "fc.weight", "fc.bias"]

    cfg = CfgNode({"MODEL": {"narrow": {"WIDTH": 6, "HEAD": {"BIAS": False}}}})
    model = get_model("cifar", "narrow", 5, cfg)
    assert model.conv.out_channels == 6
    assert model.fc.bias is None

    assert published_weights("cifar", "narrow") == "~/narrow.pth"
    assert models.cifar_model_dict["narrow"] == (Narrow, "~/narrow.pth")


def test_a_family_of_its_own():
    MODELS.add("tiny", functools.partial(Narrow, width=2, head={"BIAS": True}), family="mine")
    assert models.model_names("mine") == ["tiny"]
    assert get_model("mine", "tiny", 3).conv.out_channels == 2


def test_published_dictionaries_can_be_edited():
    constructor, weights = models.cifar_model_dict["resnet8"]
    assert weights is None
    assert constructor()(torch.randn(2, 3, 32, 32))[0].shape == (2, 100)

    narrow = functools.partial(Narrow, width=2, head={"BIAS": True})
    models.cifar_model_dict["mine"] = (narrow, "weights.pth")
    assert get_model("cifar", "mine", 3).fc.out_features == 3
    assert published_weights("cifar", "mine") == "weights.pth"
    models.imagenet_model_dict["mine"] = narrow
    assert published_weights("imagenet", "mine") is None

    del models.cifar_model_dict["mine"]
    with pytest.raises(UserError, match="unknown cifar model 'mine'"):
        get_model("cifar", "mine", 3)


@pytest.mark.parametrize(
    ("family", "name", "classes"),
    [("cifar", "vgg8", 100), ("tiny_imagenet", "ResNet18", 200), ("imagenet", "MobileNetV1", 1000)],
)
def test_published_constructors_have_published_defaults(family, name, classes):
    constructor = MODELS.find(name, family).value
    assert constructor()(torch.randn(2, 3, 32, 32))[0].shape == (2, classes)


def test_paths_of_published_weights():
    with_weights = {name for name in models.cifar_model_dict if published_weights("cifar", name)}
    expected = {"resnet56", "resnet110", "resnet32x4", "ResNet50", "wrn_40_2", "vgg13"}
    assert with_weights == expected
    for name in with_weights:
        path = str(WEIGHTS / "cifar_teachers" / f"{name}_vanilla" / "ckpt_epoch_240.pth")
        assert published_weights("cifar", name) == path
        assert models.cifar_model_dict[name][1] == path

    tiny = str(WEIGHTS / "tiny_imagenet_teachers" / "ResNet18_vanilla" / "ti_res18")
    assert published_weights("tiny_imagenet", "ResNet18") == tiny
    assert published_weights("tiny_imagenet", "ShuffleV2") is None

    resnet34 = str(WEIGHTS / "imagenet_teachers" / "resnet34-333f7ec4.pth")
    assert published_weights("imagenet", "ResNet34") == resnet34
    assert published_weights("imagenet", "MobileNetV1") is None


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("cifar", "resnt20", r"unknown cifar model 'resnt20', did you mean 'resnet20'\?"),
        ("imagenet", "vgg8", "unknown imagenet model 'vgg8'; write cifar/vgg8"),
        ("imagenet", "mine", r"unknown imagenet model 'mine' \(known: .*ResNet18, "),
        ("imagnet", "vgg8", r"unknown model family 'imagnet', did you mean 'imagenet'\?"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_one(family, name, message):
    for find in (functools.partial(get_model, num_classes=3), published_weights):
        with pytest.raises(UserError, match=message) as caught:
            find(family, name)
        assert "\n" not in str(caught.value)


def not_a_module(num_classes):
    return [num_classes]


@pytest.mark.parametrize(
    ("value", "info", "message"),
    [
        (3, {"family": "cifar"}, "must be a class or a function"),
        (Narrow, {}, "has no family; register it with family='cifar'"),
        (Narrow, {"family": "cifar"}, r"must take the arguments num_classes \(.*'width'"),
        (Narrow, {"family": "cifar", "defaults": {"DEPTH": 3}}, "arguments depth, num_classes"),
        (not_a_module, {"family": "cifar"}, r"must be a torch.nn.Module, not list"),
    ],
)
def test_a_model_that_breaks_the_contract(value, info, message):
    def register_and_build():
        MODELS.register("bad", **info)(value)
        get_model("cifar", "bad", 3)

    with pytest.raises(UserError, match=message) as caught:
        register_and_build()
    assert "\n" not in str(caught.value)


def test_the_same_weights_for_the_same_seed():
    torch.manual_seed(1)
    first = get_model("cifar", "resnet8", 10).state_dict()
    torch.manual_seed(1)
    second = get_model("cifar", "resnet8", 10).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
