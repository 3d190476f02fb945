"""The cost of networks, against published figures and counts by hand; the command profile."""

import json
import re

import pytest
import torch
from torch import nn

from edkd.dataset import get_dataset
from edkd.engine.config.load import load_config
from edkd.engine.named_network import _dataset_for
from edkd.engine.profile import profile_network
from edkd.models import get_model
from edkd.registry import DATASETS
from tests.conftest import PLUGIN
from tests.runs import assert_refused

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("family", "name", "shape", "parameters", "macs"),
    [
        # torchvision's documentation: 25.557032 M parameters, 4.09 G multiply-accumulates.
        ("imagenet", "ResNet50", (3, 224, 224), 25_557_032, 4.09e9),
        # K. He et al., CVPR 2016, table 6: 0.27 M parameters.
        ("cifar", "resnet20", (3, 32, 32), 278_324, 0.0408e9),
    ],
)
def test_published_figures(family, name, shape, parameters, macs):
    classes = 1000 if family == "imagenet" else 100
    profile = profile_network(get_model(family, name, classes), shape, CPU)
    assert profile.parameters == parameters
    assert profile.macs == pytest.approx(macs, rel=2e-3)
    assert profile.megabytes == pytest.approx(4e-6 * parameters, rel=0.02)
    assert profile.threads == torch.get_num_threads()
    assert profile.images_per_second == pytest.approx(1000 / profile.milliseconds)


class Attention(nn.Module):
    """16 tokens of 8 features, as a vision transformer has them; fused in eval mode."""

    def __init__(self, fused):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.attention = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
        self.fused = fused

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        if self.fused:
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.attention(tokens)


def test_attention_is_counted():
    patches = 16 * 8 * 12
    products = 2 * 16 * 16 * 8
    projections = 16 * (4 * 8 * 8 + 2 * 8 * 32)
    for fused, macs in ((True, patches + products), (False, patches + projections + products)):
        assert profile_network(Attention(fused), (3, 8, 8), CPU).macs == macs
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_network_is_not_changed():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).double()
    network[2].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    profile = profile_network(network, (3, 8, 8), CPU, batch_size=2)
    assert profile.batch_size == 2
    assert [module.training for module in network.modules()] == [True, True, True, False]
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


# The command.


def test_a_table_of_teacher_and_student(tool):
    done = tool("profile", "resnet20", "wrn_16_1", "-bs", 2, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    header, first, second, _, where = done.out.splitlines()
    assert len(header) == len(first) == len(second)
    assert re.match(r"resnet20 +3x32x32 +100 +278,324 +40.82 M +1.12 MB +[\d.]+ ms ", first)
    assert "batch 1 " in header
    assert "batch 2 " in header
    assert where.startswith("float32 on cpu, 1 thread; images/s with batch 2")


def test_a_run_its_files_and_plugin(tool, train_tiny, tmp_path):
    assert train_tiny("run", "SOLVER.EPOCHS", 1, "DISTILLER.TYPE", "KD").code == 0
    run = tmp_path / "distill" / "run"
    words = [run, run / "student_latest", "narrow", "-d", "tiny", "--plugin", PLUGIN]
    done = tool("profile", *words, "--num-classes", 4, "--size", 8, "--json", "--device", "cpu")
    assert (done.code, done.err) == (0, "")

    records = json.loads(done.out)
    assert [record["architecture"] for record in records] == ["narrow"] * 3
    assert {tuple(record["image_shape"]) for record in records} == {(3, 8, 8)}
    assert {record["macs"] for record in records} == {8 * 8 * 6 * 27 + 6 * 4}
    assert [timing["batch_size"] for timing in records[0]["latency"]] == [1, 64]

    # The file knows the size and the classes, even where its model and data set are given.
    named = [run / "student_latest", "-m", "narrow", "-d", "tiny", "--plugin", PLUGIN]
    (record,) = json.loads(tool("profile", *named, "--json", "--device", "cpu").out)
    assert (record["image_shape"], record["num_classes"]) == ([3, 8, 8], 4)

    done = tool("profile", run, "--json", "--device", "cpu")
    assert json.loads(done.out)[0]["image_shape"] == [3, 8, 8]


def test_a_file_that_names_nothing(tool, tmp_path):
    torch.save(get_model("cifar", "resnet8", 10).state_dict(), tmp_path / "w.pth")
    words = [tmp_path / "w.pth", "-d", "cifar10", "-bs", 1, "--device", "cpu"]
    assert_refused(
        tool("profile", *words), "does not name its model; give the architecture with -m"
    )
    done = tool("profile", *words, "-m", "resnet8", "--json")
    (record,) = json.loads(done.out)
    assert (record["architecture"], record["num_classes"]) == ("resnet8", 10)


@pytest.mark.parametrize(
    ("word", "dataset"),
    [
        ("ResNet50", "cifar100"),
        ("ResNet34", "imagenet"),
        ("tiny_imagenet/ResNet18", "tiny_imagenet"),
        ("imagenet/ResNet50", "imagenet"),
        ("cifar/resnet8", "cifar100"),
        ("some_library/resnet8", "cifar100"),
    ],
)
def test_the_data_set_of_a_model(word, dataset):
    assert _dataset_for(word) == dataset


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet19"], "'resnet19', not one of .* did you mean"),
        (["resnet20", "runs/a/b"], "no file of weights and no folder of a run at runs/a/b"),
        (["resnet20.pth"], "no file of weights and no folder of a run at resnet20.pth"),
        (["vgg8", "--size", 7], r"vgg8 does not take images of 3x7x7 \(.*\); give another --size"),
        (["resnet20", "-bs", 10**8], "the memory of cpu does not hold a batch of 100000000 images"),
        (["resnet20", "-m", "resnet56"], "-m resnet56 is for a file that does not name its model"),
        (["resnet20", "-bs", 0], "'0' is not a positive number"),
        (["resnet20", "--device", "gpu"], "--device gpu: no such device"),
        (["resnet20", "-d", "cifar1000"], "cifar1000"),
        (["narrow", "-d", "tiny", "--plugin", PLUGIN], "classes of tiny is not known; give --num-"),
        (
            ["narrow", "-d", "tiny", "--plugin", PLUGIN, "--num-classes", 3],
            "the size of the images of tiny is not known; give --size",
        ),
    ],
)
def test_mistakes(tool, words, message):
    device = [] if "--device" in words else ["--device", "cpu"]
    assert_refused(tool("profile", *words, *device), message)


def test_the_registered_facts_are_those_of_the_images():
    """For the data set that needs no files; tests of the others are beside their readers."""
    info = DATASETS.find("digits").info
    data = get_dataset(load_config(opts=["DATASET.TYPE", "digits"]), CPU)
    assert data.info.image_shape == info["image_shape"]
    assert data.num_classes == info["num_classes"]


def test_a_word_that_names_nothing(tool):
    """The message speaks of the word, not of a key that the user did not write."""
    done = tool("profile", "resnet21")
    assert_refused(done, "there is no such path, and MODEL is 'resnet21', not one of")
