"""Each architecture against the published ones' keys, shapes, features and logits, and the tables that name them."""

import importlib.util
import json

import pytest
import torch
import torch.nn as nn

from edkd import models
from edkd.errors import UserError
from edkd.paths import DATA_ROOT

FAMILIES = ("cifar", "tiny_imagenet", "imagenet")
EVERY = [(family, name) for family in FAMILIES for name in models.model_names(family)]
CIFAR = models.model_names("cifar")
CLOSE = dict(rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def published(golden):
    return json.loads((golden / "models.json").read_text())


@pytest.fixture(scope="module")
def fill(golden):
    spec = importlib.util.spec_from_file_location("golden_fill", golden / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(tensors):
    return [list(tensor.shape) for tensor in tensors]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), **CLOSE)


def means(tensors):
    return torch.tensor([tensor.mean() for tensor in tensors], dtype=torch.float64)


def test_every_published_architecture_is_there(published):
    assert {family: set(known) for family, known in published.items()} == {
        family: set(models.model_names(family)) for family in FAMILIES
    }


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_equals_the_published_network(published, fill, family, name):
    expected = published[family][name]
    model = models.get_model(family, name, expected["num_classes"])
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == expected[
        "state_dict"
    ]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["parameters"]

    fill.fill(model).double().eval()  # drawn in float32, as the golden values were
    with torch.no_grad():
        logits, features = model(fill.image(2, expected["input_size"]).double())
    assert_close(logits[:, :8], expected["logits_first8"])
    # A sum of both signs loses digits: measure it against the sum of magnitudes.
    assert abs(logits.sum() - expected["logits_sum"]) <= 1e-9 * logits.abs().sum()
    assert shapes(features["feats"]) == expected["feats"]
    assert shapes(features["preact_feats"]) == expected["preact_feats"]
    assert list(features["pooled_feat"].shape) == expected["pooled_feat"]
    assert_close(means(features["feats"]), expected["feats_mean"])
    assert_close(means(features["preact_feats"]), expected["preact_mean"])


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_helper_methods_describe_the_features(family, name):
    model = models.get_model(family, name, 5).eval()
    with torch.no_grad():
        _, features = model(torch.randn(1, 3, 32, 32))
    assert model.get_stage_channels() == [feature.shape[1] for feature in features["feats"]]
    head = {id(parameter) for parameter in list(model.children())[-1].parameters()}
    feature_parameters = {id(parameter) for parameter in model.get_feat_modules().parameters()}
    assert feature_parameters | head == {id(parameter) for parameter in model.parameters()}
    if name in ("MobileNetV2", "ShuffleV2"):
        with pytest.raises(UserError, match="no batch norm"):
            model.get_bn_before_relu()
    else:
        norms = [norm.num_features for norm in model.get_bn_before_relu()]
        assert norms == [feature.shape[1] for feature in features["preact_feats"][1:]]


@pytest.mark.parametrize("name", CIFAR)
def test_any_number_of_classes_and_a_gradient_for_every_parameter(name):
    model = models.get_model("cifar", name, 7).train()
    logits, features = model(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 7)
    assert len(features["pooled_feat"]) == 4
    (
        logits.square().sum() + sum(feature.square().mean() for feature in features["preact_feats"])
    ).backward()
    without = [
        key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert without == []


@pytest.mark.parametrize("name", CIFAR)
def test_no_returned_tensor_is_overwritten(name):
    """An in-place ReLU would leave no negative entry before it."""
    model = models.get_model("cifar", name, 7).eval()
    with torch.no_grad():
        _, features = model(torch.randn(2, 3, 32, 32))
    for preact in features["preact_feats"][1:]:
        assert (preact < 0).any()


@pytest.mark.parametrize(
    "name", ["resnet8x4", "ResNet18", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
)
def test_channels_last_changes_nothing(name):
    model = models.get_model("cifar", name, 10).double().eval()
    image = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        logits, features = model(image)
        model = model.to(memory_format=torch.channels_last)
        logits_last, features_last = model(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits_last, logits, **CLOSE)
    torch.testing.assert_close(features_last["feats"], features["feats"], **CLOSE)


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ResNet18"])
def test_convolutions_start_from_the_published_spread(name):
    for module in models.get_model("cifar", name, 100).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_a_batch_norm_sees_each_batch_once():
    model = models.get_model("cifar", "wrn_16_2", 10).train()
    model(torch.randn(2, 3, 32, 32))
    assert {
        int(value)
        for key, value in model.state_dict().items()
        if key.endswith("num_batches_tracked")
    } == {1}


def test_published_weights_paths():
    root = DATA_ROOT / "download_ckpts"
    published = {name for name in CIFAR if models.published_weights("cifar", name)}
    assert published == {"resnet56", "resnet110", "resnet32x4", "ResNet50", "wrn_40_2", "vgg13"}
    for name in published:
        path = str(root / "cifar_teachers" / f"{name}_vanilla" / "ckpt_epoch_240.pth")
        assert models.published_weights("cifar", name) == models.cifar_model_dict[name][1] == path
    tiny = str(root / "tiny_imagenet_teachers" / "ResNet18_vanilla" / "ti_res18")
    assert models.published_weights("tiny_imagenet", "ResNet18") == tiny
    assert models.published_weights("tiny_imagenet", "ShuffleV2") is None
    resnet34 = str(root / "imagenet_teachers" / "resnet34-333f7ec4.pth")
    assert models.published_weights("imagenet", "ResNet34") == resnet34
    assert models.published_weights("imagenet", "MobileNetV1") is None


def test_tables_build_without_arguments():
    assert models.cifar_model_dict["vgg8"][0]()(torch.randn(2, 3, 32, 32))[0].shape == (2, 100)
    assert models.tiny_imagenet_model_dict["ResNet18"][0]()(torch.randn(2, 3, 64, 64))[0].shape == (
        2,
        200,
    )
    assert models.imagenet_model_dict["MobileNetV1"]()(torch.randn(2, 3, 64, 64))[0].shape == (
        2,
        1000,
    )


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        UserError, match=r"unknown cifar model 'resnt20', did you mean 'resnet20'\?"
    ) as caught:
        models.get_model("cifar", "resnt20", 10)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"unknown imagenet model 'vgg8' \(known: ResNet18, "):
        models.published_weights("imagenet", "vgg8")
    with pytest.raises(
        UserError, match=r"unknown model family 'imagnet', did you mean 'imagenet'\?"
    ):
        models.model_names("imagnet")
