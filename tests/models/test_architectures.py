"""Each architecture against the published one: keys, shapes, features and logits."""

import pytest
import torch
from torch import nn

from edkd.errors import UserError
from edkd.models import get_model, model_names
from tests.golden.fill import fill, image
from tests.golden.values import architectures, state_dict_shapes
from tests.short_forms import slow_but

PUBLISHED = architectures()
EVERY = [(family, name) for family in PUBLISHED for name in PUBLISHED[family]]
SHORT = [key for key in EVERY if key[0] == "cifar" or key == ("imagenet", "ResNet18")]
"""Those of the short form: the others have large images."""
ONE_OF_EACH = ["resnet8x4", "ResNet18", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
CLOSE = dict(rtol=1e-9, atol=1e-12)


def shapes(tensors):
    return [list(tensor.shape[1:]) for tensor in tensors]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), **CLOSE)


def means(tensors):
    return torch.tensor([tensor.mean() for tensor in tensors], dtype=torch.float64)


def filled(family, name, images):
    """Golden values, and what the network computes for that many images."""
    expected = PUBLISHED[family][name]
    model = get_model(family, name, expected["num_classes"])
    fill(model).double().eval()
    with torch.no_grad():
        logits, features = model(image(expected["input_size"])[:images].double())
    return expected, model, logits, features


def check_values(expected, logits, features):
    """Logits of two images, and the mean of each feature map."""
    assert_close(logits[:, :8], expected["logits_first8"])
    # A sum of both signs loses digits: compare relative to the sum of magnitudes.
    assert abs(logits.sum() - expected["logits_sum"]) <= 1e-9 * logits.abs().sum()
    assert_close(means(features["feats"]), expected["feats_mean"])
    assert_close(means(features["preact_feats"]), expected["preact_mean"])


def check_helpers(name, model, features):
    """`get_stage_channels`, `get_feat_modules` and `get_bn_before_relu` describe the features."""
    assert model.get_stage_channels() == [feature.shape[1] for feature in features["feats"]]

    *_, head = model.children()
    parts = [*model.get_feat_modules().parameters(), *head.parameters()]
    assert {id(p) for p in parts} == {id(p) for p in model.parameters()}

    if name in ("MobileNetV2", "ShuffleV2"):
        with pytest.raises(UserError, match="no batch norm"):
            model.get_bn_before_relu()
    else:
        norms = [norm.num_features for norm in model.get_bn_before_relu()]
        assert norms == [feature.shape[1] for feature in features["preact_feats"][1:]]


@pytest.mark.parametrize("published", slow_but(SHORT, EVERY), ids="-".join)
def test_equals_the_published_network(published):
    family, name = published
    is_small = PUBLISHED[family][name]["input_size"] == 32
    expected, model, logits, features = filled(family, name, images=2 if is_small else 1)

    state = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
    assert state == state_dict_shapes(expected["layers"])
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]

    assert shapes(features["feats"]) == expected["feats"]
    assert shapes(features["preact_feats"]) == expected["preact_feats"]
    assert list(features["pooled_feat"].shape[1:]) == expected["pooled_feat"]
    check_helpers(name, model, features)

    if is_small:
        check_values(expected, logits, features)
    else:
        assert_close(logits[:, :8], expected["logits_first8"][:1])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [key for key in EVERY if key[0] != "cifar"])
def test_every_feature_equals_the_published_one(family, name):
    expected, _, logits, features = filled(family, name, images=2)
    check_values(expected, logits, features)


def test_every_published_architecture_is_registered():
    for family, known in PUBLISHED.items():
        assert set(known) <= set(model_names(family))


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "ResNet50"])
def test_any_number_of_classes_and_a_gradient_for_every_parameter(name):
    model = get_model("cifar", name, 7).train()
    logits, features = model(torch.randn(4, 3, 16, 16))
    assert logits.shape == (4, 7)
    assert len(features["pooled_feat"]) == 4

    # An in-place ReLU would leave no negative entry before it.
    for preact in features["preact_feats"][1:]:
        assert (preact < 0).any()

    of_features = sum(feature.square().mean() for feature in features["preact_feats"])
    (logits.square().sum() + of_features).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key

    # Each batch norm ran once.
    counters = [value for key, value in model.state_dict().items() if key.endswith("_tracked")]
    assert {int(counter) for counter in counters} == {1}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_channels_last_changes_nothing(name):
    model = get_model("cifar", name, 10).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        logits, features = model(images)
        model = model.to(memory_format=torch.channels_last)
        logits_last, features_last = model(images.to(memory_format=torch.channels_last))

    torch.testing.assert_close(logits_last, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features_last["feats"], features["feats"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ResNet18"])
def test_convolutions_start_from_the_published_spread(name):
    for module in get_model("cifar", name, 100).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
