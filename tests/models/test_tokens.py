"""Stages of transformers, the logits of a distillation token, and networks of one image size."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from edkd.models import as_network, get_model
from edkd.models._tokens import _ends, as_map
from edkd.models._torchvision import Torchvision

X = torch.randn(2, 3, 32, 32)
TIMM = dict(img_size=32, patch_size=8, embed_dim=24, depth=6, num_heads=3, num_classes=5)


def torchvision_vit():
    return torchvision.models.VisionTransformer(32, 8, 6, 3, 24, 48, num_classes=5)


def torchvision_swin():
    return torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=5)


def timm_vit():
    return pytest.importorskip("timm").models.VisionTransformer(**TIMM)


def timm_deit():
    timm = pytest.importorskip("timm")
    return timm.models.deit.VisionTransformerDistilled(**TIMM)


def timm_swin():
    sizes = dict(img_size=32, patch_size=4, window_size=4, embed_dim=12)
    timm = pytest.importorskip("timm")
    return timm.models.SwinTransformer(**sizes, depths=(2, 2), num_heads=(2, 2), num_classes=5)


def timm_mixer():
    sizes = dict(img_size=32, patch_size=8, num_blocks=4, embed_dim=24, num_classes=5)
    return pytest.importorskip("timm").models.MlpMixer(**sizes)


def timm_convnext():
    sizes = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5)
    return pytest.importorskip("timm").models.ConvNeXt(**sizes)


CASES = [
    (torchvision_vit, [(24, 4, 4)] * 4, [(17, 24)] * 4),
    (torchvision_swin, [(12, 8, 8), (24, 4, 4)], [(64, 12), (16, 24)]),
    (timm_vit, [(24, 4, 4)] * 4, [(17, 24)] * 4),
    (timm_deit, [(24, 4, 4)] * 4, [(18, 24)] * 4),
    (timm_swin, [(12, 8, 8), (24, 4, 4)], [(64, 12), (16, 24)]),
    (timm_mixer, [(24, 4, 4)] * 4, [(16, 24)] * 4),
    (timm_convnext, [(8, 8, 8), (8, 4, 4), (16, 2, 2), (16, 1, 1)], []),
]


@pytest.mark.parametrize(("make", "feats", "tokens"), CASES)
def test_stages(make, feats, tokens):
    module = make().eval()
    network = as_network(module)
    first = network(X)
    again = network(X)
    for logits, features in (first, again):
        torch.testing.assert_close(logits, module(X))
        assert [tuple(each.shape[1:]) for each in features["feats"]] == feats
        assert [tuple(each.shape[1:]) for each in features.get("tokens", [])] == tokens
    torch.testing.assert_close(again[1]["feats"], first[1]["feats"])

    sum(each.sum() for each in again[1]["feats"]).backward()
    assert any(parameter.grad is not None for parameter in module.parameters())


def test_stages_are_the_outputs_of_blocks_after_the_class_tokens():
    module = timm_deit().eval()
    outputs = []
    for block in module.blocks:
        block.register_forward_hook(lambda block, inputs, output: outputs.append(output))
    _, features = as_network(module)(X)
    chosen = [outputs[number - 1] for number in (1, 2, 5, 6)]
    assert all(a is b for a, b in zip(features["tokens"], chosen, strict=True))

    patch = features["feats"][0][:, :, 1, 2]
    torch.testing.assert_close(patch, chosen[0][:, 2 + 1 * 4 + 2])


def test_maps_of_images_that_are_not_square():
    module = pytest.importorskip("timm").models.VisionTransformer(**TIMM | {"img_size": (32, 64)})
    _, features = as_network(module)(torch.randn(1, 3, 32, 64))
    assert features["feats"][0].shape == (1, 24, 4, 8)
    tokens = torch.arange(13.0).reshape(1, 13, 1)
    assert as_map(tokens, (3, 4))[0, 0, 1].tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("depth", "ends"),
    [(12, [2, 4, 10, 12]), (24, [4, 8, 20, 24]), (6, [1, 2, 5, 6]), (4, [1, 2, 3, 4]), (2, [1, 2])],
)
def test_where_four_stages_end(depth, ends):
    assert _ends(depth) == ends


def test_attention_that_is_written_out_is_no_map():
    module = timm_vit().eval()
    for block in module.blocks:
        block.attn.fused_attn = False
    _, features = as_network(module)(X)
    assert features["feats"][0].shape == (2, 24, 4, 4)


def test_branches_beside_a_stream_are_no_stages():
    """What is recorded must be what the next block gets."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return self.inner(x)

    class Streams(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 6, 8, 8)
            self.branches = nn.ModuleList(Branch() for _ in range(4))
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            for branch in self.branches:
                x = x + branch(x)
            return self.head(x.mean(1))

    _, features = as_network(Streams())(X)
    assert len(features["feats"]) == 0
    assert "tokens" not in features


def test_logits_of_a_distillation_token():
    network = as_network(timm_deit())
    assert "logits_dist" not in network.train()(X)[1]
    network.set_distilled_training(True)
    for _ in range(2):
        logits, features = network.train()(X)
        assert logits.shape == features["logits_dist"].shape == (2, 5)
        assert not torch.equal(logits, features["logits_dist"])
        assert len(features["feats"]) == 4

    module = network.eval().module
    x = module.forward_features(X)
    mean = (module.head(x[:, 0]) + module.head_dist(x[:, 1])) / 2
    torch.testing.assert_close(network(X)[0], mean)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/vit_b_32", "timm/deit_tiny_distilled_patch16_224"])
def test_a_network_of_one_size_resizes_its_images(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    network = get_model("cifar", name, 5).eval()
    assert network.fixed_size == (224, 224)
    large = nn.functional.interpolate(X[:1], (224, 224), mode="bilinear")
    with torch.no_grad():
        logits, features = network(X[:1])
        torch.testing.assert_close(logits, network(large)[0])
    assert len(features["feats"]) == 4
    assert not any("size" in key for key in network.state_dict())

    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        with torch.no_grad():
            torch.testing.assert_close(twin(X[:1])[0], logits)


def test_networks_of_any_size_are_left_alone():
    assert not hasattr(Torchvision().build("resnet18", 5), "fixed_size")


@pytest.mark.parametrize(
    ("name", "patches", "parameters"),
    [("deit_tiny_p4", 8, 5_365_076), ("deit_micro_p8", 4, 214_996)],
)
def test_own_networks_with_a_distillation_token(name, patches, parameters):
    network = get_model("cifar", name, 10).eval()
    logits, features = network(X)
    width = features["pooled_feat"].shape[1]
    assert [each.shape for each in features["feats"]] == [(2, width, patches, patches)] * 4
    assert sum(each.numel() for each in network.parameters()) == parameters

    module = network.module
    network.set_distilled_training()
    of_class, features = network.train()(X)
    torch.testing.assert_close((of_class + features["logits_dist"]) / 2, logits)
    with torch.no_grad():
        other = torch.cat([X[:1], torch.randn(1, 3, 32, 32)])
        torch.testing.assert_close(module.eval()(other)[0], logits[0])
