"""The teacher memo: exact, shared, never believed where it should not be, and never in the way of a run."""

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edkd.dataset import get_dataset
from edkd.distillers import Distiller, distiller_dict
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.load_cfg import load_cfg
from edkd.engine.teacher_memo import Features, Store, TeacherMemo, remember, segment_files
from edkd.models import get_model

CPU = torch.device("cpu")
TRAIN = ["DATASET.TYPE", "digits", "DISTILLER.TEACHER", "resnet14", "DISTILLER.STUDENT", "resnet8"]
TRAIN += [
    "SOLVER.BATCH_SIZE",
    "128",
    "SOLVER.LR_DECAY_STAGES",
    "[1]",
    "LOG.WANDB",
    "False",
    "LOG.TENSORBOARD_FREQ",
    "0",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "resnet14"
    torch.manual_seed(0)
    save_checkpoint({"model": get_model("cifar", "resnet14", 10).state_dict()}, path)
    return path


@pytest.fixture
def train(tool, tmp_path, teacher):
    """Train on digits; the run's output, and the hash of the student."""

    def run(name, *opts, epochs=2):
        words = [*TRAIN, "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", teacher, "SOLVER.EPOCHS", epochs]
        outcome = tool("train", *words, "LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", name, *opts)
        assert outcome.code == 0, outcome.err
        student = tmp_path / "distill" / name / "student_latest"
        return outcome.out, hashlib.sha256(student.read_bytes()).hexdigest()

    return run


def segments(root):
    return sorted(path for folder in (root / "teacher_memo").iterdir() for path in segment_files(folder))


def setup(folder, method="KD", *opts):
    """A distiller with its memo, the loader, and what was said."""
    amp = torch.bfloat16 if method == "ODD" else None
    cfg = load_cfg(opts=[*TRAIN, "DISTILLER.TYPE", method, "LOG.PREFIX", str(folder), *opts])
    data = get_dataset(cfg, CPU)
    torch.manual_seed(0)
    networks = [get_model("cifar", name, 10) for name in ("resnet8", "resnet14")]
    distiller = distiller_dict[method](*networks, cfg).to(memory_format=torch.channels_last)
    said = []
    memo = remember(distiller, data.train, cfg, CPU, amp, [1], said.append)
    return SimpleNamespace(distiller=distiller, memo=memo, loader=data.train, said=said, cfg=cfg)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_cold_warm_and_off_train_bit_by_bit_the_same(train, amp):
    cold, of_cold = train("cold", "SOLVER.AMP", amp)
    warm, of_warm = train("warm", "SOLVER.AMP", amp)
    _, of_off = train("off", "SOLVER.AMP", amp, "TEACHER_MEMO.ENABLED", "False")
    assert of_cold == of_warm == of_off
    assert "1798 answers" in cold
    assert " 0 are asked" in warm


def test_another_seed_finds_what_both_draw_and_another_method_finds_all(train, tmp_path):
    train("one")
    size = sum(path.stat().st_size for path in segments(tmp_path))
    both, _ = train("two", "SOLVER.SEED", "2", "DISTILLER.TYPE", "DKD")
    third, _ = train("three", "DISTILLER.TYPE", "EDKD")
    assert " 0 are asked" not in both
    assert " 0 are asked" in third
    grown = sum(path.stat().st_size for path in segments(tmp_path))
    assert size < grown < 2 * size  # of 1798 answers, some dozen are drawn twice


def test_answers_are_the_teachers(tmp_path):
    s = setup(tmp_path)
    teacher = s.memo.teacher
    s.memo.prepare(3, lambda line: None)
    seen = 0
    for batch in s.loader.epoch(3):
        s.memo.expect(batch)
        with torch.no_grad():
            logits, features = s.memo(batch.image)
            own_logits, own_features = teacher(batch.image)
        assert not logits.requires_grad
        assert (logits - own_logits).abs().max() <= 1e-4
        assert torch.equal(features["pooled_feat"], own_features["pooled_feat"])
        assert set(features) == set(own_features)
        other, _ = s.memo(batch.image.flip(3))
        assert torch.equal(other, teacher(batch.image.flip(3))[0])
        seen += len(logits)
    assert seen == s.loader.num_images


def test_an_answer_does_not_depend_on_what_else_is_asked(tmp_path):
    memo = setup(tmp_path).memo
    keys = memo.keys(1)
    together = memo.fill(keys, lambda line: None)
    apart = [memo.fill(part, lambda line: None) for part in (keys[::-1][:300], keys[::-1][300:])]
    assert (np.concatenate(apart) == together[::-1]).all()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_type_on_disk_is_as_asked(tmp_path, dtype):
    s = setup(tmp_path, "KD", "TEACHER_MEMO.DTYPE", dtype)
    s.memo.prepare(1, lambda line: None)
    first = s.memo.table.clone()
    (file,) = segments(tmp_path)
    assert file.stat().st_size == s.loader.num_images * (4 + 10 * (4 if dtype == "fp32" else 2))
    s.memo.table.zero_()
    s.memo.prepare(1, lambda line: None)
    assert torch.equal(s.memo.table, first)
    assert s.memo.table.dtype == torch.float32


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


def damage_key(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def damage_truncate(path):
    os.truncate(path, path.stat().st_size - 44)  # a whole row less: the size alone does not tell


def damage_cut(path):
    os.truncate(path, path.stat().st_size // 2 + 1)


def damage_empty(path):
    os.truncate(path, 0)


def damage_swap(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


DAMAGES = [damage_flip, damage_key, damage_truncate, damage_cut, damage_empty, damage_swap]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_asked_again(train, tmp_path, tool, damage):
    _, good = train("good", "SOLVER.AMP", "off")
    files = {path: path.read_bytes() for path in segments(tmp_path)}
    victim = next(iter(files))
    damage(victim)
    verified = tool("memo", "verify", "--folder", tmp_path / "teacher_memo")
    assert verified.code == 2
    assert str(victim) in verified.err
    said, again = train("again", "SOLVER.AMP", "off")
    assert again == good
    assert f"{victim} is damaged" in said
    assert tool("memo", "verify", "--folder", tmp_path / "teacher_memo").code == 0
    _, third = train("third", "SOLVER.AMP", "off")
    assert third == good


def test_a_file_of_another_teacher_is_not_believed(train, tmp_path, teacher):
    _, good = train("good")
    (folder,) = (tmp_path / "teacher_memo").iterdir()
    torch.manual_seed(1)
    save_checkpoint({"model": get_model("cifar", "resnet14", 10).state_dict()}, tmp_path / "other")
    _, other = train("other", "DISTILLER.TEACHER_CKPT", tmp_path / "other")
    assert other != good
    (foreign,) = (path for path in (tmp_path / "teacher_memo").iterdir() if path != folder)
    for path in segment_files(folder):
        path.unlink()
    for path in segment_files(foreign):
        path.rename(folder / path.name)
    said, again = train("again")
    assert again == good
    assert said.count("is damaged or of another memo") == 2


def test_two_processes_at_once(tmp_path, teacher):
    words = [*TRAIN, "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", teacher, "SOLVER.EPOCHS", "3"]
    command = [sys.executable, "tools/train.py", *words, "LOG.PREFIX", tmp_path, "EXPERIMENT.NAME"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([str(word) for word in [*command, name]], env=environment, stdout=subprocess.DEVNULL)
        for name in ("a", "b")
    ]
    assert [run.wait(120) for run in runs] == [0, 0]
    a, b = ((tmp_path / "distill" / name / "student_latest").read_bytes() for name in ("a", "b"))
    assert a == b
    assert len(segments(tmp_path)) == 3
    assert not list(tmp_path.rglob("*.partial"))


def test_a_disk_that_fails_does_not_stop_the_run(train, tmp_path, monkeypatch):
    _, good = train("good", "TEACHER_MEMO.FOLDER", tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    said, there = train("there", "TEACHER_MEMO.FOLDER", tmp_path / "file" / "below")
    assert there == good
    assert said.count("adds nothing more") == 1
    said, full = train("full", "TEACHER_MEMO.MAX_GB", "0.00004", "TEACHER_MEMO.FOLDER", tmp_path / "small")
    assert full == good
    assert said.count("MAX_GB is reached") == 1
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "small").rglob("*") if path.is_file()) <= 40000


class AsksFeatures(Distiller):
    def forward_train(self, image, target, **kwargs):
        with torch.no_grad():
            logits, features = self.teacher(image)
            loss = features["pooled_feat"].mean()
        return self.student(image)[0], {"loss": loss + logits.mean() + self.student(image)[0].mean()}


class AsksAnotherImage(Distiller):
    def forward_train(self, image, target, **kwargs):
        return self.student(image)[0], {"loss": self.student(image)[0].mean() + self.teacher(image.flip(3))[0].mean()}


class AsksAWeight(Distiller):
    def forward_train(self, image, target, **kwargs):
        loss = self.teacher.fc.weight.mean() + self.teacher(image)[0].mean()
        return self.student(image)[0], {"loss": loss + self.student(image)[0].mean()}


class AsksNothing(Distiller):
    def forward_train(self, image, target, **kwargs):
        return self.student(image)[0], {"loss": self.student(image)[0].mean()}


class CutsTheImage(Distiller):
    def forward_train(self, image, target, **kwargs):
        image[:, :, :8] = 0
        return self.student(image)[0], {"loss": self.student(image)[0].mean() + self.teacher(image)[0].mean()}


class WantsTheGradientOfTheImage(Distiller):
    def forward_train(self, image, target, **kwargs):
        image.requires_grad_()
        (slope,) = torch.autograd.grad(self.teacher(image)[0].sum(), image)
        return self.student(image)[0], {"loss": self.student(image)[0].mean() + slope.mean()}


class WantsMorePrecision(Distiller):
    def forward_train(self, image, target, **kwargs):
        with torch.autocast("cpu", enabled=False):
            logits = self.teacher(image)[0]
        return self.student(image)[0], {"loss": self.student(image)[0].mean() + logits.mean()}


class NamesTheArgument(Distiller):
    def forward_train(self, image, target, **kwargs):
        return self.student(image)[0], {"loss": self.student(image)[0].mean() + self.teacher(x=image)[0].mean()}


class TakesFeaturesForADict(Distiller):
    def forward_train(self, image, target, **kwargs):
        features = self.teacher(image)[1].copy()
        return self.student(image)[0], {"loss": self.student(image)[0].mean() + features["pooled_feat"].mean()}


class Hooks(Distiller):
    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        teacher.layer3.register_forward_hook(lambda *_: None)

    def forward_train(self, image, target, **kwargs):
        return self.student(image)[0], {"loss": (self.student(image)[0] - self.teacher(image)[0]).mean()}


REASONS = [
    (AsksFeatures, "its features"),
    (AsksAnotherImage, "another image"),
    (AsksAWeight, "its fc"),
    (AsksNothing, "did not ask"),
    (Hooks, "hooks"),
    (CutsTheImage, "another image"),
    (WantsTheGradientOfTheImage, "another image"),
    (WantsMorePrecision, "another precision"),
    (NamesTheArgument, "another image"),
    (TakesFeaturesForADict, "trial step of the method failed"),
]


@pytest.mark.parametrize(("method", "reason"), REASONS)
def test_a_method_that_needs_more_gets_the_real_teacher(tmp_path, monkeypatch, method, reason):
    monkeypatch.setitem(distiller_dict, "ODD", method)
    s = setup(tmp_path, "ODD")
    assert s.memo is None
    assert not isinstance(s.distiller.teacher, TeacherMemo)
    assert len(s.said) == 1
    assert reason in s.said[0]
    batch = next(s.loader.epoch(1))
    _, losses = s.distiller.train()(image=batch.image, target=batch.target, index=batch.index, epoch=1)
    sum(losses.values()).backward()


class KeepsTheTeacherTwice(Distiller):
    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.networks = torch.nn.ModuleList([student, teacher])

    def forward_train(self, image, target, **kwargs):
        return self.student(image)[0], {"loss": self.student(image)[0].mean() + self.networks[1](image)[0].mean()}


def test_the_memo_stands_wherever_the_teacher_stood(tmp_path, monkeypatch):
    monkeypatch.setitem(distiller_dict, "ODD", KeepsTheTeacherTwice)
    s = setup(tmp_path, "ODD")
    assert s.distiller.networks[1] is s.distiller.teacher is s.memo
    assert s.memo.fc is s.memo.teacher.fc


def test_the_trial_changes_nothing(tmp_path):
    fresh = get_model("cifar", "resnet8", 10)
    torch.manual_seed(0)
    fresh = get_model("cifar", "resnet8", 10).state_dict()
    s = setup(tmp_path)
    state = s.distiller.student.state_dict()
    assert all(torch.equal(state[key], value) for key, value in fresh.items())


def test_features_run_the_teacher_only_when_looked_at():
    calls = []
    features = Features(lambda image: (calls.append(image), ("logits", {"feats": 1}))[1], "image")
    assert not calls
    assert features["feats"] == 1
    assert len(features) == 1
    assert calls == ["image", "image"]


def test_a_folder_takes_the_room_of_what_it_holds(tmp_path):
    said = []
    about = {"num_keys": 1000, "row_bytes": 8}
    store = Store(tmp_path, "memo_0123456789abcdef", about, 1e9, said.append)
    keys = np.array([5, 999, 0])
    rows = np.arange(24, dtype=np.uint8).reshape(3, 8)
    store.add(keys, rows)
    other = Store(tmp_path, "memo_0123456789abcdef", about, 1e9, said.append)
    read, found = other.read(np.array([0, 1, 5, 999]))
    assert found.tolist() == [True, False, True, True]
    assert (read[[2, 3, 0]] == rows).all()
    assert not read[1].any()
    assert [path.stat().st_size for path in segment_files(tmp_path / "memo_0123456789abcdef")] == [3 * (4 + 8)]
    assert not said


def test_nothing_but_memos_is_counted_or_deleted(train, tmp_path, tool):
    mine = tmp_path / "memos" / "web"
    mine.mkdir(parents=True)
    (mine / "about.json").write_text("{}")
    (mine / "thesis.tex").write_text("x" * 10**6)
    old = mine / "download.partial"
    old.touch()
    os.utime(old, (0, 0))
    train("one", "TEACHER_MEMO.FOLDER", mine.parent, "TEACHER_MEMO.MAX_GB", "0.0005")
    assert len(list(mine.parent.iterdir())) == 2
    assert tool("memo", "delete", "--all", "--folder", mine.parent).code == 0
    assert [path.name for path in mine.parent.iterdir()] == ["web"]
    assert len(list(mine.iterdir())) == 3


def test_many_files_need_no_open_ones(tmp_path):
    """A limit of open files does not make a memo forget."""
    store = Store(tmp_path, "memo_0123456789abcdef", {"num_keys": 500, "row_bytes": 4}, 1e9, print)
    for i in range(500):
        store.add(np.array([i]), np.full((1, 4), i % 256, np.uint8))
    again = Store(tmp_path, "memo_0123456789abcdef", {"num_keys": 500, "row_bytes": 4}, 1e9, print)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    rows, found = again.read(np.arange(500))
    assert found.all()
    assert (rows[:, 0] == np.arange(500) % 256).all()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_disk_error_is_not_damage(tmp_path, monkeypatch):
    said = []
    store = Store(tmp_path, "memo_0123456789abcdef", {"num_keys": 9, "row_bytes": 4}, 1e9, said.append)
    store.add(np.array([1]), np.ones((1, 4), np.uint8))
    again = Store(tmp_path, "memo_0123456789abcdef", {"num_keys": 9, "row_bytes": 4}, 1e9, said.append)

    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.read_bytes", fails)
    _, found = again.read(np.array([1]))
    monkeypatch.undo()
    assert not found.any()
    assert not said
    again.refresh()
    assert again.read(np.array([1]))[1].all()


def test_list_and_delete(train, tmp_path, tool):
    root = tmp_path / "teacher_memo"
    assert "no memos" in tool("memo", "list", "--folder", root).out
    train("one")
    name = next(root.iterdir()).name
    listed = tool("memo", "list", "--folder", root).out
    assert name in listed
    assert "resnet14 on digits, " in listed
    assert " of 72819 answers" in listed
    assert "--all" in tool("memo", "delete", "--folder", root).err
    assert f"did you mean '{name}'?" in tool("memo", "delete", name[:-1], "--folder", root).err
    about = json.loads((root / name / "about.json").read_text())
    (root / name / "about.json").write_text("{")
    assert tool("memo", "list", "--folder", root).code == 2
    (root / name / "about.json").write_text(json.dumps(about))
    assert tool("memo", "delete", name, "--folder", root).code == 0
    assert not list(root.iterdir())
