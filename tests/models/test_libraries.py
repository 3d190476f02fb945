"""Models of torchvision and timm by name: built, found, described, and their weights."""

import re
import socket
import sys
import urllib.request

import pytest
import torch
from torch import nn

from edkd import models
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from edkd.models import as_network, get_model, library_facts, library_weights
from edkd.models._libraries import LIBRARIES, Unreachable

IMAGENET = (0.485, 0.456, 0.406)


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


def output(name, size=64, classes=7):
    network = get_model("cifar", name, classes).eval()
    with torch.no_grad():
        logits, features = network(torch.randn(1, 3, size, size))
    assert logits.shape == (1, classes)
    return network, features


@pytest.mark.parametrize(
    ("name", "size", "channels", "pooled"),
    [
        ("torchvision/resnet18", 64, [64, 64, 128, 256, 512], 512),
        ("torchvision/efficientnet_b0", 64, [16, 24, 40, 112, 1280], 1280),
        ("torchvision/convnext_tiny", 64, [96, 192, 384, 768], 768),
        ("torchvision/swin_t", 64, [96, 192, 384, 768], 768),
        ("torchvision/vit_b_16", 224, [768] * 4, 768),
        ("timm/resnet18.a1_in1k", 64, [64, 64, 128, 256, 512], 512),
        ("timm/mobilenetv3_small_050", 64, [16, 8, 16, 24, 288], 1024),
        ("timm/convnext_atto", 64, [40, 80, 160, 320], 320),
        ("timm/tf_efficientnet_lite0", 64, [32, 24, 40, 112, 1280], 1280),
        ("timm/vit_tiny_patch16_224", 224, [192] * 4, 192),
        ("timm/deit_tiny_distilled_patch16_224", 224, [192] * 4, 192),
    ],
)
def test_features_where_there_are_stages(request, name, size, channels, pooled):
    if name.startswith("timm/"):
        request.getfixturevalue("timm")
    _, features = output(name, size)
    assert [feature.shape[1] for feature in features["feats"]] == channels
    assert features["pooled_feat"].shape == (1, pooled)


def test_reading_a_stage_where_there_are_none():
    network = as_network(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)))
    _, features = network(torch.randn(2, 3, 4, 4))
    with pytest.raises(UserError, match="Sequential has no stages and so no feature maps"):
        features["feats"][-1]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_return_logits_in_training(name):
    import torchvision

    network = get_model("cifar", f"torchvision/{name}", 5)
    logits, features = network.train()(torch.randn(2, 3, 96, 96))
    assert logits.shape == (2, 5)
    assert features["pooled_feat"].shape[0] == 2

    # It computes what torchvision's own pretrained form does.
    make = getattr(torchvision.models, name)
    own = make(num_classes=5, init_weights=False, transform_input=True).eval()
    missing, surplus = network.load_state_dict(own.state_dict(), strict=False)
    assert missing == []
    assert all(key.startswith(network.training_heads) for key in surplus)
    image = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(network.eval()(image)[0], own(image))


def test_names_of_a_library_and_of_another_family(timm):
    assert {"resnet50", "vit_b_16"} <= set(models.model_names("torchvision"))
    assert "convnext_tiny.fb_in1k" in models.model_names("timm")
    assert "raft_large" not in models.model_names("torchvision")
    output("cifar/resnet8", 32)
    assert get_model("imagenet", "tiny_imagenet/ResNet18", 5).linear.out_features == 5
    assert get_model("none of ours", "torchvision/resnet18", 5).fc.out_features == 5


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("cifar", "torchvision/resnt50", "unknown torchvision model 'resnt50', did you mean 'resn"),
        ("cifar", "timm/convnext_tiny.fb_in", "unknown timm model .*, did you mean 'convnext_tiny"),
        ("cifar", "torchvison/resnet50", "unknown library or family of models 'torchvison', did y"),
        ("cifar", "torchvision/", r"unknown torchvision model '' \(\d+ models, as alexnet"),
        ("imagenet", "resnet20", "unknown imagenet model 'resnet20'; write cifar/resnet20"),
        ("cifar", "alexnet", "unknown cifar model 'alexnet'; write torchvision/alexnet"),
        ("cifar", "convnext_atto", "unknown cifar model 'convnext_atto'; write timm/convnext_atto"),
        ("imagenet", "cifar/resnt20", "unknown cifar model 'resnt20', did you mean 'resnet20'"),
    ],
)
def test_a_name_that_is_not_there(timm, family, name, message):
    for find in (lambda: get_model(family, name, 3), lambda: models.check_model(family, name)):
        with pytest.raises(UserError, match=message) as caught:
            find()
        assert "\n" not in str(caught.value)


def test_timm_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=r"the package timm .*: pip install 'edkd\[models\]'"
    ) as caught:
        get_model("cifar", "timm/resnet18", 3)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="unknown cifar model 'convnext_atto' "):
        get_model("cifar", "convnext_atto", 3)


def test_what_libraries_say_about_their_weights(timm):
    facts = library_facts("torchvision/resnet50")
    assert facts.input.image_shape == (3, 224, 224)
    assert (facts.input.mean, facts.input.resize) == (IMAGENET, 232)
    assert facts.input.interpolation == "bilinear"
    assert facts.accuracy == pytest.approx(80.858)
    assert (facts.num_classes, facts.class_names[0]) == (1000, "tench")
    assert facts.source.endswith("resnet50-11ad3fa6.pth")

    facts = library_facts("timm/tf_efficientnet_lite0")
    assert (facts.input.mean, facts.input.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (facts.input.resize, facts.input.interpolation) == (256, "bicubic")
    assert (facts.num_classes, facts.licence, facts.accuracy) == (1000, "apache-2.0", None)
    assert len(facts.class_names) == 1000
    assert library_facts("resnet56") is None
    assert library_facts("timm/botnet50ts_256") is None


@pytest.mark.parametrize("name", models.model_names("torchvision"))
def test_every_model_of_torchvision_has_facts(name):
    facts = library_facts(f"torchvision/{name}")
    assert facts.num_classes == len(facts.class_names) == 1000
    assert facts.accuracy > 50


def test_weights_without_a_network(timm, monkeypatch, tmp_path):
    def no_network(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(urllib.request.socket, "create_connection", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name, source in (
        ("torchvision/resnet18", "https://download.pytorch.org/models/resnet18-f37072fd.pth"),
        ("timm/tf_efficientnet_lite0", "huggingface.co/timm/tf_efficientnet_lite0.in1k"),
    ):
        with pytest.raises(UserError) as caught:
            library_weights(name, "DISTILLER.TEACHER_CKPT")
        message = str(caught.value)
        assert message.startswith(f"could not download the pretrained weights of {name} from ")
        assert source in message
        assert "give the file with DISTILLER.TEACHER_CKPT FILE" in message
        assert "\n" not in message


def test_weights_in_the_cache_of_torch_hub(monkeypatch, tmp_path):
    """A file that is there and has its hash is used without a network; another one is not."""
    import hashlib

    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = torchvision.models.squeezenet1_1().state_dict()
    file = tmp_path / "hub" / "checkpoints" / "w.pth"
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    start = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    file.rename(file.with_name(f"w-{start}.pth"))

    class Weights:
        url = f"http://127.0.0.1:9/w-{start}.pth"

    monkeypatch.setattr("edkd.models._torchvision._weights", lambda name: Weights)
    library = LIBRARIES["torchvision"]
    found = library.download("squeezenet1_1")
    assert all(torch.equal(found[key], state[key]) for key in state)

    Weights.url = "http://127.0.0.1:9/w-01234567.pth"
    with pytest.raises(Unreachable, match="refused"):
        library.download("squeezenet1_1")


def test_the_file_of_a_densenet_has_names_of_an_older_version(tmp_path):
    """As "denselayer1.norm.1.weight", which is now "denselayer1.norm1.weight"."""
    state = get_model("imagenet", "torchvision/densenet121", 10).state_dict()
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])")
    file = tmp_path / "densenet121-a639ec97.pth"
    torch.save({old.sub(r"\1.\2", key): value for key, value in state.items()}, file)

    network = get_model("imagenet", "torchvision/densenet121", 10)
    load_weights(network, file)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_crops_are_no_larger_than_what_they_are_cropped_from(timm):
    assert library_facts("timm/volo_d4_448").input.resize == 448


def test_a_model_without_weights(timm):
    with pytest.raises(UserError, match="has no pretrained weights; give a file with -c FILE"):
        library_weights("timm/botnet50ts_256", "-c")
