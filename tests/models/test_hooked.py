"""Any module under the contract: features of networks that return logits alone."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torchvision
from torch import nn

from edkd.errors import UserError
from edkd.models import as_network, get_model
from edkd.models._hooked import HookedNetwork
from tests.small import TinyNet

X = torch.randn(2, 3, 32, 32)


def conv_net():
    """Two resolutions, one ReLU for all, a batch norm and dropout."""
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        relu,
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        relu,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 8),
        relu,
        nn.Dropout(0.5),
        nn.Linear(8, 5),
    )


def shapes(features):
    return [tuple(feature.shape[1:]) for feature in features["feats"]]


def hooks_of(network):
    return [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize(
    ("name", "feats", "pooled"),
    [
        ("resnet18", [(64, 16), (64, 8), (128, 4), (256, 2), (512, 1)], 512),
        ("resnet50", [(64, 16), (256, 8), (512, 4), (1024, 2), (2048, 1)], 2048),
        ("mobilenet_v3_small", [(16, 16), (16, 8), (24, 4), (48, 2), (576, 1)], 1024),
        ("densenet121", [(64, 16), (256, 8), (512, 4), (1024, 2), (1024, 1)], 1024),
    ],
)
def test_features_of_torchvision_networks(name, feats, pooled):
    module = getattr(torchvision.models, name)(num_classes=7).eval()
    network = as_network(module)
    with torch.no_grad():
        first = network(X)
        again = network(X)
        plain = module(X)

    for logits, features in (first, again):
        assert torch.equal(logits, plain)
        assert shapes(features) == [(channels, size, size) for channels, size in feats]
        assert features["pooled_feat"].shape == (2, pooled)
        assert features["preact_feats"] == []
    torch.testing.assert_close(again[1]["feats"], first[1]["feats"], rtol=0, atol=0)
    assert hooks_of(network) == []


def test_features_are_those_of_the_stages():
    module = torchvision.models.resnet18(num_classes=7).eval()
    expected = []
    for stage in (module.layer1, module.layer2, module.layer3, module.layer4):
        stage.register_forward_hook(lambda stage, inputs, output: expected.append(output))
    module.fc.register_forward_hook(lambda fc, inputs, output: expected.append(inputs[0]))

    logits, features = as_network(module)(X)
    actual = [*features["feats"][1:], features["pooled_feat"]]
    assert all(a is b for a, b in zip(actual[:4], expected[:4], strict=True))
    torch.testing.assert_close(module.fc(features["pooled_feat"]), logits)


def test_a_plain_network_in_training():
    module = conv_net().train()
    twin = copy.deepcopy(module)
    network = as_network(module)
    for number in (1, 2, 3):
        torch.manual_seed(number)
        logits, features = network(X)
        torch.manual_seed(number)
        assert torch.equal(logits, twin(X))  # one forward pass: equal statistics and dropout
        assert shapes(features) == [(4, 32, 32), (6, 16, 16)]
        assert features["pooled_feat"].shape == (2, 8)
    torch.testing.assert_close(network.state_dict(), twin.state_dict(), rtol=0, atol=0)

    sum(feature.sum() for feature in [logits, *features["feats"]]).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_side_branch_is_no_stage():
    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

        def forward(self, x):
            x = self.conv(x)
            return x * self.gate(x)

    head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 9, 1), nn.Flatten(), nn.Linear(9, 5)]
    _, features = as_network(nn.Sequential(Squeeze(), *head))(X)
    assert shapes(features) == [(4, 32, 32)]
    assert features["pooled_feat"].shape == (2, 9)


def test_another_image_size():
    network = as_network(conv_net())
    network(X)
    _, features = network(torch.randn(2, 3, 24, 48))
    assert shapes(features) == [(4, 24, 48), (6, 12, 24)]


def test_a_network_without_linear_layer():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    _, features = as_network(nn.Sequential(nn.Conv2d(3, 5, 3), *head))(X)
    torch.testing.assert_close(features["pooled_feat"], features["feats"][0].mean((2, 3)))


def test_modules_under_the_contract_pass_through():
    ours = get_model("cifar", "resnet8", 5)
    assert as_network(ours) is ours
    network = as_network(TinyNet())
    assert as_network(network) is network

    for _ in range(2):
        _, features = network.eval()(X)
        assert len(features["preact_feats"]) == 2
    assert features["pooled_feat"].shape == (2, 6)
    assert network.fc is network.module.fc
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        network.absent  # noqa: B018


def test_state_dicts_have_the_keys_of_the_module():
    module = conv_net()
    network = as_network(module)
    keys = list(module.state_dict())
    assert list(network.state_dict()) == keys
    network.load_state_dict(conv_net().state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key.*"0.weight"'):
        network.load_state_dict({})

    # Also as a part of something larger.
    outer = nn.ModuleDict({"student": network, "teacher": as_network(TinyNet())})
    state = outer.state_dict()
    assert [key for key in state if key.startswith("student")] == [f"student.{k}" for k in keys]
    larger = {key: value + 1 for key, value in state.items()}
    outer.load_state_dict(larger)
    torch.testing.assert_close(dict(outer.state_dict()), larger)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        outer.load_state_dict({**larger, "student.more": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        outer.load_state_dict({key: larger[key] for key in list(larger)[1:]})


def test_copies_are_independent():
    network = as_network(conv_net()).eval()
    logits, _ = network(X)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert isinstance(twin, HookedNetwork)
        again, features = twin(X)
        assert torch.equal(again, logits)
        assert shapes(features) == [(4, 32, 32), (6, 16, 16)]
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in network.parameters()}


def test_nothing_of_a_pass_is_kept():
    network = as_network(conv_net())
    gc.disable()
    try:
        for _ in range(2):
            _, features = network(X)
            kept = [weakref.ref(feature) for feature in features["feats"]]
            del features, _
            assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()


def test_no_hook_is_left_after_an_error():
    network = as_network(conv_net())
    for _ in range(2):
        with pytest.raises(RuntimeError):
            network(torch.randn(2, 4, 32, 32))
        assert hooks_of(network) == []
        network(X)


class Returns(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x.flatten(1))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda logits: {"logits": logits}, "dict"),
        (lambda logits: (logits, logits), "tuple"),
        (lambda logits: logits[:, :, None, None], r"a tensor of shape \(2, 3072, 1, 1\)"),
        (lambda logits: None, "NoneType"),
    ],
)
def test_other_outputs_are_an_error(change, what):
    network = as_network(Returns(change))
    for _ in range(2):
        message = rf"Returns returned {what}, but a network must return logits \(N,C\)"
        with pytest.raises(UserError, match=message):
            network(X)


def test_without_layers_there_are_logits_alone():
    logits, features = as_network(Returns(lambda logits: logits))(X)
    assert logits.shape == (2, 3072)
    assert features["feats"] == []
    with pytest.raises(UserError, match="Returns has no pooled_feat"):
        features["pooled_feat"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_torchscript_has_logits_alone():
    network = as_network(torch.jit.script(conv_net().eval()))
    logits, features = network(X)
    assert logits.shape == (2, 5)
    assert features["feats"] == []


def test_something_else_is_no_network():
    with pytest.raises(UserError, match=r"must be a torch.nn.Module, not function"):
        as_network(lambda x: x)
