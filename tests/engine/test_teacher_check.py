"""The accuracy of each teacher before the first step: its line, its warning, its stored form."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edkd
from edkd.commands.memo import main as memo
from edkd.dataset import dataset_dict, resident
from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.dataset.sampling import random_state
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.file_facts import facts_of
from edkd.engine.memo.accuracy import read_accuracy, write_accuracy
from edkd.engine.memo.files import accuracy_files
from edkd.engine.teacher_check import Chance, Claim, check_teachers, far_below, near_chance
from edkd.errors import NonFiniteError, UserError
from edkd.registry import DATASETS
from tests.conftest import PLUGIN
from tests.runs import outcome, plain
from tests.small import TinyNet, make_trainer, tiny_images

CHECKED = ("DISTILLER.TYPE", "KD", "DISTILLER.CHECK_TEACHER", "True", "SOLVER.EPOCHS", "1")

CIFAR = "data/cifar-100-python"
TEACHER = "download_ckpts/cifar_teachers/resnet20_vanilla/ckpt_epoch_240.pth"


def normalized(images):
    return (images.image.float() / 255 - 0.5) / 0.25


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Weights of `wide` that were trained, and the claim of their accuracy."""
    torch.manual_seed(0)
    network = TinyNet(channels=12)
    images = tiny_images(400, seed=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(network(normalized(images))[0], images.target).backward()
        optimizer.step()

    test = tiny_images(24, seed=1)
    logits = network.eval()(normalized(test))[0]
    top1 = 100 * (logits.argmax(1) == test.target).double().mean().item()
    assert top1 > 80
    path = tmp_path_factory.mktemp("good") / "wide"
    save_checkpoint({"model": network.state_dict(), "accuracy": top1}, path)
    return path


@pytest.fixture
def train(train_tiny, tmp_path, good):
    """Train with the teacher of `good`; the outcome, and the folder of the run."""

    def run(name, *opts):
        words = [*CHECKED, "DISTILLER.TEACHER_CKPT", good, *opts]
        return train_tiny(name, *words), tmp_path / "distill" / name

    return run


def lines(run):
    return [line for line in run.out.splitlines() if line.startswith("teacher wide")]


# The line.


def test_the_line_has_the_figure_of_eval_and_the_claim_of_the_file(train, tool, good):
    done, run = train("a")
    evaluated = tool("eval", "--plugin", PLUGIN, "-m", "wide", "-c", good, "-d", "tiny")
    figure = re.search(r"top-1 ([\d.]+) %", evaluated.out)[1]
    text = f"teacher wide: top-1 {figure} % on the 24 test images (its file claims {figure} %)"
    assert (done.code, done.err, lines(done)) == (0, "", [text])
    assert text in (run / "worklog.txt").read_text()

    (top1,) = json.loads((run / "result.json").read_text())["teacher_top1"]
    assert f"{top1:.2f}" == figure
    assert "teacher_top1" not in done.out


@pytest.mark.slow
def test_held_out_images_are_used_where_there_are_some(train):
    done, _ = train("a", "DATASET.VAL_SPLIT", "0.5")
    assert re.search(r"teacher wide: top-1 [\d.]+ % on the \d+ val images", done.out)


def test_several_teachers_have_a_line_each(train, good):
    files = f"[{good},{good}]"
    done, run = train("a", "DISTILLER.TEACHER", "[wide,wide]", "DISTILLER.TEACHER_CKPT", files)
    assert len(lines(done)) == 2
    assert len(json.loads((run / "result.json").read_text())["teacher_top1"]) == 2


def test_without_a_teacher_or_with_the_key_there_is_none(train):
    for opts in (["DISTILLER.TYPE", "NONE"], ["DISTILLER.CHECK_TEACHER", "False"]):
        done, run = train(opts[1], *opts)
        assert (done.code, lines(done)) == (0, [])
        assert "teacher_top1" not in json.loads((run / "result.json").read_text())


def test_a_resumed_run_keeps_the_figure(train):
    _, run = train("a")
    before = json.loads((run / "result.json").read_text())["teacher_top1"]
    done, _ = train("a", "SOLVER.EPOCHS", "2", "--resume")
    assert (done.code, lines(done)) == (0, [])
    assert json.loads((run / "result.json").read_text())["teacher_top1"] == before


def test_the_claim_of_another_data_set_is_not_compared(train, good, tmp_path):
    content = load_checkpoint(good) | {"accuracy": 100.0, "dataset": "elsewhere"}
    save_checkpoint(content, tmp_path / "t")
    done, _ = train("a", "DISTILLER.TEACHER_CKPT", tmp_path / "t")
    assert (done.code, done.err) == (0, "")
    assert "(its file claims 100.00 % on elsewhere)" in done.out


@pytest.mark.parametrize(
    ("content", "claim"),
    [
        ({"accuracy": 72.63}, 72.63),
        ({"accuracy": torch.tensor(72.5)}, 72.5),
        ({"accuracy": 0.725}, 72.5),
        ({"accuracy": 0.725, "split": "val"}, 0.725),
        ({"accuracy": True}, None),
        ({"accuracy": float("nan")}, None),
        ({"accuracy": 720.0}, None),
        ({"accuracy": "high"}, None),
        ({}, None),
    ],
)
def test_claims_of_files(content, claim):
    assert facts_of(content).accuracy == claim


# No trace in the run.


@pytest.mark.parametrize("memo", ["True", "False"])
def test_results_are_the_same_bits_with_and_without(train, memo):
    opts = ["TEACHER_MEMO.ENABLED", memo, "SOLVER.EPOCHS", "2"]
    _, with_it = train("with", *opts)
    _, without = train("without", *opts, "DISTILLER.CHECK_TEACHER", "False")
    assert outcome(with_it) == outcome(without)


class Draws(nn.Module):
    """A teacher that draws random numbers in evaluation mode, too."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        logits, features = self.network(image)
        return F.dropout(logits, 0.1, training=True), features


def test_random_state_and_teacher_stay_as_they_are(tmp_path):
    def change(distiller):
        teacher = Draws(distiller.teacher).eval()
        distiller._frozen = (teacher,)

    trainer = make_trainer("KD", tmp_path, cached=False, change=change)
    said = []
    trainer.logger = SimpleNamespace(say=said.append, show=lambda text: None)
    (teacher,) = trainer.distiller.teachers()
    before = plain([random_state(), teacher.state_dict()])
    check_teachers(trainer)
    assert plain([random_state(), teacher.state_dict()]) == before
    assert re.match(r"teacher \w+: top-1 [\d.]+ % on the 24 test images", said[0])


class Turned(TinyNet):
    """The same weights with other code: the classes are in another order."""

    def forward(self, x):
        logits, features = super().forward(x)
        return logits.roll(1, 1), features


Turned.__name__ = "TinyNet"


def test_the_stored_figure_is_not_that_of_other_code(tmp_path):
    said = []
    for cls in (TinyNet, Turned, TinyNet):
        trainer = make_trainer("KD", tmp_path, cached=False)
        (teacher,) = trainer.distiller.teachers()
        teacher.__class__ = cls
        trainer.logger = SimpleNamespace(say=said.append, show=lambda text: None)
        check_teachers(trainer)

    lines = [line for line in said if line.startswith("teacher ")]
    assert ["earlier run" in line for line in lines] == [False, False, True]


# The warning.


def test_near_chance():
    of_hundred = Chance(100, 0.01)
    assert "near chance (1.00 %)" in near_chance(1.4, 10000, of_hundred)
    assert near_chance(1.9, 10000, of_hundred)
    assert not near_chance(2.1, 10000, of_hundred)
    assert near_chance(2.1, 100, of_hundred)  # noise
    assert not near_chance(70.0, 1000, Chance(2, 0.5))
    assert near_chance(70.0, 1000, Chance(2, 0.7))  # the most frequent class


def test_far_below_a_claim():
    claim = Claim(72.0, "its file claims", "")
    assert "its file claims 72.00 %" in far_below(66.0, 10000, claim)
    assert not far_below(68.0, 10000, claim)
    assert not far_below(66.0, 100, claim)  # noise
    assert not far_below(99.0, 10000, claim)


def test_a_shuffled_head_is_a_warning(train, good, tmp_path):
    content = load_checkpoint(good)
    for key in ("fc.weight", "fc.bias"):
        content["model"][key] = content["model"][key].roll(1, 0)
    save_checkpoint(content, tmp_path / "t")

    done, run = train("a", "DISTILLER.TEACHER_CKPT", tmp_path / "t")
    assert done.code == 0
    assert done.err.count("\n") == 1
    assert re.match(
        r"edkd: warning: the teacher wide has top-1 [\d.]+ % on the 24 test images, which is near "
        r"chance \(2\d\.\d\d %\); likely causes: .* order of the classes.*; give weights",
        done.err,
    )
    assert "warning: the teacher wide" in (run / "worklog.txt").read_text()


@pytest.fixture
def part_of_cifar(real_data):
    """Registers the data set `part`: 300 images of CIFAR-100 with a normalisation."""
    cfg = edkd.load_config(opts=["DATASET.ROOT", str(real_data / "data")])
    whole = dataset_dict["cifar100"].load(cfg, torch.device("cpu"))

    def first(images):
        return Images(images.image[:300], images.target[:300])

    def register(mean, std):
        def load(cfg, device):
            train, test = first(whole.train.images), first(whole.test.images)
            names = whole.info.class_names
            return resident_dataset(cfg, device, train, test, CropFlip(), mean, std, names)

        DATASETS.register("part", family="cifar")(load)

    yield SimpleNamespace(register=register, mean=whole.info.mean, std=whole.info.std)
    DATASETS.remove("part")


@pytest.mark.slow
@pytest.mark.needs(CIFAR, TEACHER)
def test_the_published_teacher_with_its_own_and_another_normalisation(
    part_of_cifar, real_data, tool, tmp_path
):
    words = ["DATASET.TYPE", "part", "DISTILLER.TYPE", "KD", "DISTILLER.STUDENT", "resnet8"]
    words += ["DISTILLER.TEACHER", "resnet20", "DISTILLER.TEACHER_CKPT", real_data / TEACHER]
    words += ["SOLVER.EPOCHS", "1", "SOLVER.AMP", "off", "LOG.WANDB", "False"]
    words += ["LOG.PREFIX", tmp_path, "EXPERIMENT.NAME"]

    part_of_cifar.register(part_of_cifar.mean, part_of_cifar.std)
    done = tool("train", *words, "right")
    assert (done.code, done.err) == (0, "")
    assert "on the 300 test images (its file claims 68.83 %)" in done.out

    DATASETS.remove("part")
    part_of_cifar.register((0.0,) * 3, (1.0,) * 3)
    done = tool("train", *words, "wrong")
    assert re.search(
        r"top-1 .* %.*, but its file claims 68.83 %; likely causes: .* with another norm",
        done.err,
    )


# Teachers and loaders of the caller.


def distil(tmp_path, teacher, target=None, **settings):
    images = tiny_images(24, seed=1)
    data = TensorDataset(normalized(images), images.target if target is None else target)
    loader = DataLoader(data, batch_size=8)
    torch.manual_seed(0)
    options = {"method": "KD", "epochs": 1, "output": tmp_path, "device": "cpu", "name": "a"}
    found = edkd.distill(TinyNet(), teacher, loader, loader, **options | settings)
    return found, (tmp_path / "distill/a/worklog.txt").read_text()


def test_modules_and_soft_targets(tmp_path, good):
    teacher = TinyNet(channels=12)
    teacher.load_state_dict(load_checkpoint(good)["model"])
    soft = 0.9 * F.one_hot(tiny_images(24, seed=1).target, 4).double() + 0.025
    found, log = distil(tmp_path, teacher, soft.float())
    assert f"teacher TinyNet: top-1 {found['teacher_top1'][0]:.2f} % on the 24 test images\n" in log
    assert found["teacher_top1"][0] > 80
    assert not accuracy_files(tmp_path / "teacher_memo")  # of loaders too little is known


class Diverges(TinyNet):
    """Logits of the first image of a batch are not finite."""

    def forward(self, image):
        logits, features = super().forward(image)
        logits[0] = torch.inf
        return logits, features


def test_logits_that_are_not_finite(tmp_path):
    message = (
        r"teacher Diverges returns logits that are NaN or infinite for 3 of the 24 test images"
    )
    with pytest.raises(NonFiniteError, match=message):
        distil(tmp_path, Diverges())


# The stored accuracy.


@pytest.fixture
def passes(monkeypatch):
    """The number of passes of `wide` over the 24 test images."""
    found = []
    forward = TinyNet.forward

    def counted(self, image):
        if len(image) == 24 and self.fc.in_features == 12:
            found.append(1)
        return forward(self, image)

    monkeypatch.setattr(TinyNet, "forward", counted)
    return found


def test_a_second_run_does_not_run_the_teacher(train, passes):
    first, run = train("a")
    assert len(passes) == 1
    second, again = train("b")
    assert len(passes) == 1
    (line,) = lines(first)
    assert lines(second) == [f"{line[:-1]}; measured by an earlier run)"]
    assert outcome(run)[0] == outcome(again)[0]

    for opts in (["TEACHER_MEMO.ENABLED", "False"], ["SOLVER.AMP", "bf16"]):
        passes.clear()
        train(opts[0], *opts)
        assert len(passes) == 1


@pytest.mark.parametrize("change", ["cut", "figure", "foreign", "list", "nan", "folder"])
def test_a_damaged_or_foreign_file_is_measured_anew(train, passes, tmp_path, change):
    done, _ = train("a")
    (path,) = accuracy_files(tmp_path / "teacher_memo")
    text = path.read_text()
    content = json.loads(text)
    content["figures"]["top1"] = float("nan") if change == "nan" else 50.0
    foreign = path.with_name("tiny_wide_0123456789abcdef.json")
    write_accuracy(foreign, read_accuracy(path), 1e9, print)

    changed = {"cut": text[:-9], "list": "[]", "foreign": foreign.read_text()}
    path.write_text(changed.get(change, json.dumps(content)))
    if change == "folder":
        path.unlink()
        path.mkdir()

    passes.clear()
    again, _ = train("b")
    assert again.code == 0
    assert len(passes) == 1
    assert lines(again) == lines(done)
    if change != "folder":
        assert path.read_text() == text


def test_a_folder_that_cannot_be_written_ends_no_run(train, tmp_path):
    (tmp_path / "file").write_text("")
    for opts in (["TEACHER_MEMO.FOLDER", tmp_path / "file"], ["TEACHER_MEMO.MAX_GB", "0"]):
        done, _ = train(opts[0], *opts)
        assert (done.code, len(lines(done))) == (0, 1)
        assert "the teacher's accuracy is not stored in" in done.out
    assert not accuracy_files(tmp_path / "teacher_memo")


def test_other_normalisation_is_another_accuracy(train, passes, monkeypatch):
    train("a")
    monkeypatch.setattr(
        resident,
        "resident_dataset",
        lambda *args: resident_dataset(*args[:-1], (0.3,) * 3),
    )
    train("b")
    assert len(passes) == 2


def test_the_command_memo_lists_verifies_and_deletes(train, tmp_path, capsys):
    train("a")
    root = tmp_path / "teacher_memo"
    (path,) = accuracy_files(root)
    memo(["list", "--folder", str(root)])
    listed = capsys.readouterr().out
    assert re.search(
        rf"\n{path.name}: wide on 24 test images of tiny, float32: top-1 [\d.]+ %\n", listed
    )
    memo(["verify", "--folder", str(root)])
    assert "all intact (2 files)" in capsys.readouterr().out

    path.with_name(f"{path.name}.0123.partial").write_text("")
    path.write_text("{")
    with pytest.raises(UserError, match=rf"{path.name} is damaged; delete the file"):
        memo(["verify", "--folder", str(root)])
    memo(["delete", path.name, "--folder", str(root)])
    assert [each for each in root.iterdir() if each.is_file()] == []
    memo(["delete", "--all", "--folder", str(root)])
    assert list(root.iterdir()) == []
