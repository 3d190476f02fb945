"""The commands, end to end, on the digits: what they leave, how they go on, what they refuse."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from edkd.distillers import distiller_dict
from edkd.engine.checkpoint import save_checkpoint
from edkd.models import get_model

CHECKOUT = Path(__file__).resolve().parents[1]
DIGITS = CHECKOUT / "configs" / "digits"
ALONE = "vanilla/resnet8.yaml"
QUICK = [
    "LOG.WANDB",
    "False",
    "SOLVER.BATCH_SIZE",
    "128",
    "SOLVER.AMP",
    "off",
    "SOLVER.SCHEDULE",
    "step",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Weights of a resnet20 for the digits; what it knows does not matter here."""
    path = tmp_path_factory.mktemp("teacher") / "student_best"
    torch.manual_seed(0)
    save_checkpoint({"model": get_model("cifar", "resnet20", 10).state_dict()}, path)
    return path


@pytest.fixture
def train(tool, tmp_path, teacher):
    """Train on the digits: train("edkd/res20_res8.yaml", name, KEY, VALUE, ...) -> Outcome; runs lie in tmp_path/o."""

    def run(config, name, *opts, flags=()):
        taught = ["DISTILLER.TEACHER_CKPT", teacher] if config != ALONE else []
        where = ["LOG.PREFIX", tmp_path / "o", "EXPERIMENT.NAME", name]
        return tool("train", "--cfg", DIGITS / config, *flags, *QUICK, *where, *taught, *opts)

    return run


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "o" / "digits"


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(run):
    return [{key: value for key, value in r.items() if "seconds" not in key} for r in records(run)]


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b):
    """Equal bit by bit, whatever is nested."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def tree(path):
    """Every file and its content."""
    return {
        p: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


def assert_refused(outcome, message, code=2):
    assert outcome.code == code, outcome
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("edkd: error: ")
    assert re.search(message, outcome.err), outcome.err


def test_a_run_leaves_what_the_design_lists(train, folder, teacher, tool):
    before = teacher.read_bytes()
    done = train("edkd/res20_res8.yaml", "run", "SOLVER.EPOCHS", 2, "LOG.SAVE_CHECKPOINT_FREQ", 2)
    assert (done.code, done.err) == (0, "")
    run = folder / "run"
    names = "config.yaml metrics.jsonl worklog.txt train.events latest best epoch_2 student_latest student_best student_2"
    assert {path.name for path in run.iterdir()} == {
        *names.split(),
        "result.json",
        "latest.previous",
        ".lock",
    }
    assert teacher.read_bytes() == before

    first, last = records(run)
    assert (first["epoch"], last["epoch"]) == (1, 2)
    assert {
        "lr",
        "train_loss",
        "train_loss_ce",
        "train_loss_edkd",
        "train_top1",
        "train_seconds",
    } <= last.keys()
    assert {"test_top1", "test_top5", "test_loss", "eval_seconds"} <= last.keys()
    latest = load(run / "latest")
    assert latest["epoch"] == 2
    assert latest["best_acc"] == max(first["test_top1"], last["test_top1"])
    assert not [key for key in latest["model"] if key.startswith("teacher")]
    assert_same(load(run / "student_latest")["model"], load(run / "student_2")["model"])
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (saved["EDKD"]["WARMUP"], saved["SOLVER"]["BATCH_SIZE"]) == (2, 128)
    assert list((run / "train.events").iterdir())
    assert f"last_test_top1 {last['test_top1']:.2f}" in (run / "worklog.txt").read_text()

    evaluated = tool("eval", "-m", "resnet8", "-c", run / "student_latest", "-d", "digits")
    assert evaluated.code == 0
    assert f"top-1 {last['test_top1']:.2f} %, top-5 {last['test_top5']:.2f} %" in evaluated.out


def test_the_default_name_says_what_was_changed(tool, tmp_path):
    opts = ["SOLVER.EPOCHS", "1", "SOLVER.LR", "0.1", "LOG.PREFIX", tmp_path, "LOG.WANDB", "False"]
    assert tool("train", "--cfg", DIGITS / ALONE, *opts).code == 0
    assert [p.name for p in (tmp_path / "digits").iterdir()] == [
        "vanilla,resnet8,SOLVER.EPOCHS:1,SOLVER.LR:0.1"
    ]


@pytest.mark.parametrize("method", sorted(distiller_dict))
def test_resumed_runs_equal_uninterrupted_ones(train, folder, method):
    config = ALONE if method == "NONE" else min((DIGITS / method.lower()).iterdir())
    opts = ["SOLVER.LR_DECAY_STAGES", "[1,2]", "SOLVER.CLIP_GRAD_NORM", 1.0, "SOLVER.AMP", "bf16"]
    assert train(config, "whole", "SOLVER.EPOCHS", 3, *opts).code == 0
    assert train(config, "parts", "SOLVER.EPOCHS", 1, *opts).code == 0
    assert train(config, "parts", "SOLVER.EPOCHS", 3, *opts, flags=["--resume"]).code == 0
    assert untimed(folder / "whole") == untimed(folder / "parts")
    for name in ("latest", "best", "student_latest", "student_best"):
        whole, parts = load(folder / "whole" / name), load(folder / "parts" / name)
        for key in ("model", "optimizer"):
            assert_same(whole.get(key), parts.get(key))


def test_resume_finds_the_run_whose_name_tells_other_epochs(tool, tmp_path):
    base = ["--cfg", DIGITS / ALONE, *QUICK, "LOG.PREFIX", tmp_path]
    assert tool("train", *base, "SOLVER.EPOCHS", "1").code == 0
    assert tool("train", *base, "SOLVER.EPOCHS", "2", "--resume").code == 0
    (run,) = (tmp_path / "digits").iterdir()
    assert len(records(run)) == 2


def test_the_student_starts_from_the_same_weights_whatever_teaches_it(train, folder):
    for config, name in [(ALONE, "alone"), ("kd/res20_res8.yaml", "taught")]:
        assert (
            train(
                config, name, "SOLVER.EPOCHS", 1, "SOLVER.LR", 1e-12, "SOLVER.WEIGHT_DECAY", 0
            ).code
            == 0
        )
    alone, taught = (
        load(folder / name / "student_latest")["model"] for name in ("alone", "taught")
    )
    torch.testing.assert_close(alone["conv1.weight"], taught["conv1.weight"])
    assert train(ALONE, "other", "SOLVER.EPOCHS", 1, "SOLVER.SEED", 2).code == 0
    other = load(folder / "other" / "student_latest")["model"]
    assert not torch.equal(alone["conv1.weight"], other["conv1.weight"])


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path):
    def command(name, *flags):
        opts = [*QUICK, "SOLVER.EPOCHS", "4", "LOG.PREFIX", str(tmp_path), "EXPERIMENT.NAME", name]
        return [
            sys.executable,
            "tools/train.py",
            "--cfg",
            "configs/digits/vanilla/resnet8.yaml",
            *flags,
            *opts,
        ]

    process = subprocess.Popen(
        command("parts"), cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not process.stdout.readline().startswith("epoch 1 "):
        assert process.poll() is None, process.stderr.read()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.stderr.read().startswith("edkd: stopped; --resume goes on")
    for words in (command("parts", "--resume"), command("whole")):
        subprocess.run(words, cwd=CHECKOUT, check=True, capture_output=True)
    whole, parts = tmp_path / "digits/whole", tmp_path / "digits/parts"
    assert untimed(whole) == untimed(parts)
    assert_same(load(whole / "latest")["model"], load(parts / "latest")["model"])


def test_a_run_that_ended_before_its_first_epoch_can_be_resumed(train, folder):
    assert train(ALONE, "run", "SOLVER.EPOCHS", 1).code == 0
    for path in (folder / "run").iterdir():
        if path.name not in ("config.yaml", "train.events"):
            path.unlink()
    assert train(ALONE, "run", "SOLVER.EPOCHS", 1, flags=["--resume"]).code == 0
    assert len(records(folder / "run")) == 1


def test_a_folder_that_holds_a_run_is_refused(train, folder):
    assert train(ALONE, "run", "SOLVER.EPOCHS", 1).code == 0
    before = tree(folder)
    assert_refused(
        train(ALONE, "run", "SOLVER.EPOCHS", 1), "already holds a run; go on with it by --resume"
    )
    changed = train(ALONE, "run", "SOLVER.EPOCHS", 1, "SOLVER.LR", 0.2, flags=["--resume"])
    assert_refused(changed, "another configuration: SOLVER.LR was 0.02 and is 0.2")
    assert_refused(
        train(ALONE, "none", "SOLVER.EPOCHS", 2, flags=["--resume"]), "--resume: no run at"
    )
    assert tree(folder) == before


def damage(state, key, value):
    """`state` with an entry, found by its dotted name, replaced; removed where `value` is None."""
    *path, last = key.split("/")
    inner = state
    for part in path:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return state


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("optimizer", None),
        ("history", None),
        ("identity", None),
        ("history", 3),
        ("history", [{"epoch": 1}]),
        ("model/student.fc.weight", torch.zeros(3)),
        ("model/student.fc.weights", torch.zeros(3)),
        ("optimizer/param_groups", []),
        ("identity/precision", "torch.float16"),
    ],
)
def test_an_altered_latest_is_refused(train, folder, key, value):
    assert train(ALONE, "run", "SOLVER.EPOCHS", 1).code == 0
    latest = folder / "run" / "latest"
    save_checkpoint(damage(load(latest), key, value), latest)
    before = tree(folder)
    assert_refused(
        train(ALONE, "run", "SOLVER.EPOCHS", 2, flags=["--resume"]),
        "--resume: .*(fits no such run|precision)",
    )
    assert tree(folder) == before


def test_what_cannot_be_gone_on_with_is_refused(train, folder):
    assert train(ALONE, "run", "SOLVER.EPOCHS", 2).code == 0
    run, resume = folder / "run", {"flags": ["--resume"]}
    assert_refused(
        train(ALONE, "run", "SOLVER.EPOCHS", 1, **resume), "SOLVER.EPOCHS is 1, but 2 are done"
    )
    whole = {name: (run / name).read_bytes() for name in ("latest", "config.yaml")}
    for name in ("latest", "latest.previous"):
        (run / name).write_bytes(whole["latest"][:1000])
    assert_refused(train(ALONE, "run", "SOLVER.EPOCHS", 3, **resume), "latest.previous is damaged")
    for name in ("latest", "latest.previous"):
        (run / name).unlink()
    assert_refused(train(ALONE, "run", "SOLVER.EPOCHS", 3, **resume), "latest is gone; copy 'best'")
    for damaged in (b"", b"[", b"- 1", b"\xff"):
        (run / "config.yaml").write_bytes(damaged)
        assert_refused(
            train(ALONE, "run", "SOLVER.EPOCHS", 3, **resume),
            "--resume: .*run was run with another|cannot be read",
        )
        assert_refused(
            train(ALONE, "another", "SOLVER.EPOCHS", 3, **resume), "--resume: no run at .*another"
        )
    (run / "config.yaml").unlink()
    assert_refused(
        train(ALONE, "run", "SOLVER.EPOCHS", 2),
        "run is not empty; give this run another EXPERIMENT.NAME",
    )
    empty = folder / "empty"
    empty.mkdir()
    (empty / ".config.yaml.partial").touch()
    assert train(ALONE, "empty", "SOLVER.EPOCHS", 1).code == 0


def test_a_cosine_run_is_not_gone_on_with_to_another_end(train, folder):
    cosine = ["SOLVER.SCHEDULE", "cosine"]
    assert train(ALONE, "run", "SOLVER.EPOCHS", 1, *cosine).code == 0
    longer = train(ALONE, "run", "SOLVER.EPOCHS", 2, *cosine, flags=["--resume"])
    assert_refused(longer, "another configuration: SOLVER.EPOCHS was 1 and is 2")


def test_another_teacher_is_not_taken_for_the_same(train, folder, tmp_path, teacher):
    mine = tmp_path / "mine"
    mine.write_bytes(teacher.read_bytes())
    opts = ["DISTILLER.TEACHER_CKPT", mine]
    assert train("kd/res20_res8.yaml", "run", "SOLVER.EPOCHS", 1, *opts).code == 0
    save_checkpoint({"model": get_model("cifar", "resnet20", 10).state_dict()}, mine)
    done = train("kd/res20_res8.yaml", "run", "SOLVER.EPOCHS", 2, *opts, flags=["--resume"])
    assert_refused(done, "--resume: the run had teacher [0-9a-f]+, and now it is")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.LRR", "1"], "unknown key SOLVER.LRR .*did you mean 'SOLVER.LR'"),
        (["SOLVER.LR"], "has no partner"),
        (
            ["--cfg", "configs/digits/kd/res20_rse8.yaml"],
            "no such file, did you mean 'configs/digits/kd/res20_res8",
        ),
        (["--cfg", "tools/train.py"], "a configuration is a .yaml file"),
        (["--confg", "x"], "unrecognized arguments: --confg"),
        (["--device", "gpu"], "--device gpu: no such device"),
        (["--plugin", "nowhere.py"], "--plugin nowhere.py"),
        (["DATASET.TYPE", "mnist"], "DATASET.TYPE is 'mnist', not one of"),
        (
            ["DATASET.TYPE", "cifar10", "DATASET.ROOT", "/nowhere"],
            "no data set at /nowhere.*tools/download.py cifar10",
        ),
        (["DISTILLER.STUDENT", "resnet9"], "DISTILLER.STUDENT is 'resnet9'.*did you mean"),
        (
            ["DISTILLER.TYPE", "KDD", "DISTILLER.TEACHER", "resnet56"],
            "DISTILLER.TYPE is 'KDD'.*did you mean 'KD'",
        ),
        (
            ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "vgg8"],
            "vgg8 has no published weights for digits; train it with .*/resnet8.yaml DISTILLER.STUDENT vgg8'",
        ),
        (
            ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", "gone"],
            "DISTILLER.TEACHER_CKPT: no weights of .* at gone",
        ),
        (["EXPERIMENT.NAME", "../../x"], "not inside LOG.PREFIX"),
        (["EXPERIMENT.NAME", "x" * 300], "name of the run is too long"),
        (["EXPERIMENT.PROJECT", "/tmp"], "not inside LOG.PREFIX"),
        (["--resume"], "--resume: no run at"),
        (["SOLVER.AMP", "fp16", "--device", "cpu"], "SOLVER.AMP fp16 needs a GPU"),
        (["EDKD.FORM", "papre"], "EDKD.FORM is 'papre'.*did you mean 'paper'"),
        (["DKD.BETA", "-1"], "DKD.BETA is -1.0, but must be at least 0"),
        (["SOLVER.LR", "-1e-3"], "SOLVER.LR is -0.001, but must be at least 0"),
        (["SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0"], "SOLVER.NESTEROV needs"),
        (["SOLVER.BATCH_SIZE", "1" + 30 * "0"], "SOLVER.BATCH_SIZE is 1000"),
        (["DATASET.VAL_SPLIT", "0.999"], "DATASET.VAL_SPLIT 0.999 leaves 0 images"),
        (["EXPERIMENT.NAME", "."], "not inside LOG.PREFIX"),
        (["EXPERIMENT.NAME", "a\0b"], "or no name"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tool, tmp_path, monkeypatch, opts, message):
    monkeypatch.chdir(CHECKOUT)
    base = [] if "--cfg" in opts else ["--cfg", DIGITS / ALONE]
    assert_refused(tool("train", *base, "LOG.PREFIX", tmp_path / "o", *opts), message)
    assert not (tmp_path / "o").exists()


@pytest.mark.needs("data/cifar-100-python")
def test_an_absent_published_teacher_names_both_ways_to_get_it(real_data, tmp_path):
    (tmp_path / "data").symlink_to(real_data / "data")
    words = ["--cfg", "configs/cifar100/kd.yaml", "LOG.PREFIX", tmp_path / "o"]
    done = shell("tools/train.py", *words, data_root=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for word in (
        str(tmp_path / "download_ckpts/cifar_teachers/resnet32x4_vanilla/ckpt_epoch_240.pth"),
        "python tools/download.py teachers",
        "--cfg configs/cifar100/vanilla/resnet32x4.yaml",
    ):
        assert word in done.stderr
    assert not (tmp_path / "o").exists()


def test_a_teacher_of_another_architecture_or_class_count_is_refused(
    train, tmp_path, teacher, folder
):
    wrong = tmp_path / "wrong"
    for model, classes, message in [
        ("resnet14", 10, "wrong is of another architecture: it lacks"),
        ("resnet20", 7, r"number of classes: fc.weight is \(7, 64\) there but \(10, 64\) here"),
    ]:
        save_checkpoint({"model": get_model("cifar", model, classes).state_dict()}, wrong)
        assert_refused(train("kd/res20_res8.yaml", "run", "DISTILLER.TEACHER_CKPT", wrong), message)
    wrong.write_bytes(teacher.read_bytes()[:-100])
    assert_refused(
        train("kd/res20_res8.yaml", "run", "DISTILLER.TEACHER_CKPT", wrong), "wrong is damaged"
    )
    assert not folder.exists()


def test_eval_mistakes(tool, tmp_path, teacher):
    assert_refused(
        tool("eval", "-m", "resnet20", "-c", tmp_path / "gone", "-d", "digits"),
        "-c: no weights of resnet20 at",
    )
    assert_refused(
        tool("eval", "-m", "resnt20", "-c", teacher, "-d", "digits"), "did you mean 'resnet20'"
    )
    assert_refused(
        tool("eval", "-m", "resnet8", "-c", teacher, "-d", "digits"), "another architecture"
    )
    assert_refused(
        tool("eval", "-m", "resnet20", "-d", "digits"), "-m resnet20 has no published weights"
    )
    assert_refused(
        tool("eval", "-m", "resnet20", "-c", teacher, "-d", "digit"), "did you mean 'digits'"
    )
    assert_refused(
        tool("eval", "-m", "resnet20", "-c", teacher, "-d", "digits", "-bs", "-1"),
        "TEST.BATCH_SIZE is -1",
    )
    assert_refused(tool("eval", "-c", teacher), "-m/--model")


def test_a_loss_that_is_not_finite_stops_the_run_with_exit_3_and_saves_nothing_of_it(
    train, folder, tool
):
    """The rate explodes after the first epoch: what that epoch left stays as it is."""
    opts = ["SOLVER.LR_DECAY_STAGES", "[1]", "SOLVER.LR_DECAY_RATE", "1e30"]
    assert train(ALONE, "run", "SOLVER.EPOCHS", 1, *opts).code == 0
    before = tree(folder / "run")
    done = train(ALONE, "run", "SOLVER.EPOCHS", 2, *opts, flags=["--resume"])
    assert_refused(done, r"loss.* not finite in epoch 2, step 2; lower SOLVER.LR", code=3)
    after = tree(folder / "run")
    for name in ("latest", "best", "student_latest", "student_best", "metrics.jsonl"):
        assert after[folder / "run" / name] == before[folder / "run" / name]
    one_step = ["SOLVER.LR", "1e39", "SOLVER.BATCH_SIZE", 899, "SOLVER.EPOCHS", 1]
    assert_refused(train(ALONE, "diverged", *one_step), r"test_loss is (nan|inf)", code=3)
    assert not (folder / "diverged/latest").exists()
    nan = {
        key: value * torch.nan for key, value in load(folder / "run/student_best")["model"].items()
    }
    save_checkpoint(
        {
            "model": nan
            | {k: v for k, v in load(folder / "run/student_best")["model"].items() if v.dim() == 0}
        },
        folder / "nan",
    )
    assert_refused(
        tool("eval", "-m", "resnet8", "-c", folder / "nan", "-d", "digits"), "diverged", code=3
    )


def test_a_held_out_split_chooses_and_the_test_set_reports(train, folder, tool):
    assert train(ALONE, "run", "SOLVER.EPOCHS", 2, "DATASET.VAL_SPLIT", 0.2).code == 0
    run = folder / "run"
    assert all("val_top1" in record and "test_top1" not in record for record in records(run))
    result = json.loads((run / "result.json").read_text())
    for which in ("last", "best"):
        name = "student_latest" if which == "last" else "student_best"
        evaluated = tool("eval", "-m", "resnet8", "-c", run / name, "-d", "digits")
        assert f"top-1 {result[f'{which}_test_top1']:.2f} %" in evaluated.out
    best = max(records(run), key=lambda record: record["val_top1"])
    assert (result["best_epoch"], result["best_val_top1"]) == (best["epoch"], best["val_top1"])


@pytest.mark.parametrize(
    "opts",
    [
        ["SOLVER.TYPE", "Adam", "SOLVER.LR", "0.001"],
        [
            "SOLVER.TYPE",
            "AdamW",
            "SOLVER.LR",
            "0.001",
            "SOLVER.SCHEDULE",
            "cosine",
            "SOLVER.WARMUP_EPOCHS",
            "1",
        ],
        ["SOLVER.NESTEROV", "True", "SOLVER.CLIP_GRAD_NORM", "0.5"],
        ["SOLVER.AMP", "bf16"],
        ["SOLVER.MOMENTUM", "0"],
    ],
)
def test_solvers_learn(train, folder, opts):
    assert train(ALONE, "run", "SOLVER.EPOCHS", 3, *opts).code == 0
    losses = [record["train_loss"] for record in records(folder / "run")]
    assert losses[-1] < losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_cuda_trains(train, folder, amp):
    flags = ["--device", "cuda"]
    opts = ["SOLVER.AMP", amp, "SOLVER.CLIP_GRAD_NORM", 5.0]
    assert train("edkd/res20_res8.yaml", "run", "SOLVER.EPOCHS", 2, *opts, flags=flags).code == 0
    assert (
        train(
            "edkd/res20_res8.yaml", "run", "SOLVER.EPOCHS", 3, *opts, flags=[*flags, "--resume"]
        ).code
        == 0
    )
    losses = [record["train_loss_ce"] for record in records(folder / "run")]
    assert losses[-1] < losses[0]


def test_clipping_bounds_the_step(train, folder):
    common = ["SOLVER.EPOCHS", 1, "SOLVER.WEIGHT_DECAY", 0]
    for name, *opts in (
        ("free",),
        ("tight", "SOLVER.CLIP_GRAD_NORM", 1e-5),
        ("still", "SOLVER.LR", 1e-12),
    ):
        assert train(ALONE, name, *common, *opts).code == 0
    free, tight, still = (
        load(folder / name / "student_latest")["model"] for name in ("free", "tight", "still")
    )
    moved = [(weights["conv1.weight"] - still["conv1.weight"]).norm() for weights in (free, tight)]
    assert moved[1] < 1e-4 < 0.01 < moved[0]


def test_loggers_do_not_change_what_is_trained(train, folder, monkeypatch):
    import tensorboardX

    class Broken:
        def __init__(self, *args, **kwargs):
            pass

        def add_scalar(self, *args):
            raise OSError("the folder of events is read-only")

    assert train(ALONE, "quiet", "SOLVER.EPOCHS", 1, "LOG.TENSORBOARD_FREQ", 0).code == 0
    assert (
        train(ALONE, "loud", "SOLVER.EPOCHS", 1, "LOG.TENSORBOARD_FREQ", 1, "LOG.WANDB", True).code
        == 0
    )
    monkeypatch.setattr(tensorboardX, "SummaryWriter", Broken)
    monkeypatch.setitem(sys.modules, "wandb", None)
    broken = train(
        ALONE, "broken", "SOLVER.EPOCHS", 1, "LOG.TENSORBOARD_FREQ", 1, "LOG.WANDB", True
    )
    assert broken.code == 0
    assert broken.out.count("TensorBoard is off: OSError: the folder of events is read-only") == 1
    assert broken.out.count("Wandb is off: ") == 1
    expected = load(folder / "quiet/student_latest")
    for name in ("loud", "broken"):
        assert_same(expected, load(folder / name / "student_latest"))
    assert list((folder / "loud/wandb").glob("offline-run-*"))
    assert "wandb: recorded offline" in (folder / "loud/worklog.txt").read_text()


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({}, "there are no credentials"),
        ({"WANDB_MODE": "online"}, "there are no credentials"),
        ({"WANDB_API_KEY": 40 * "0"}, "it cannot be reached"),
        ({"WANDB_MODE": "offline"}, "WANDB_MODE says so"),
    ],
)
def test_wandb_without_credentials_or_network_records_offline(tmp_path, env, reason):
    """Nobody answers at the address; the run does not ask, does not wait long, and ends normally."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    clean |= {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"} | env
    words = [
        "--cfg",
        f"configs/digits/{ALONE}",
        "SOLVER.EPOCHS",
        "1",
        "LOG.WANDB",
        "True",
        "LOG.PREFIX",
        str(tmp_path),
    ]
    command = [sys.executable, "tools/train.py", *words, "EXPERIMENT.NAME", "run"]
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=CHECKOUT, env=clean, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 100
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("wandb")]
    assert re.match(rf"wandb: recorded offline in .*, as {reason}", line)
    assert list((tmp_path / "digits/run/wandb").glob("offline-run-*"))


def test_of_two_runs_started_at_once_one_is_refused(tmp_path):
    words = [
        "--cfg",
        f"configs/digits/{ALONE}",
        *QUICK,
        "SOLVER.EPOCHS",
        "2",
        "LOG.PREFIX",
        str(tmp_path),
    ]
    command = [sys.executable, "tools/train.py", *words, "EXPERIMENT.NAME", "run"]
    both = [
        subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = {process.wait(120): process.stderr.read().decode() for process in both}
    assert set(errors) == {0, 2}
    assert "already holds a run" in errors[2]
    assert len(records(tmp_path / "digits/run")) == 2


PLUGIN = """
import numpy as np
import torch, torch.nn.functional as F
from edkd.distillers import Distiller, kd_loss, register

@register("MYKD")
class MyKD(Distiller):
    defaults = dict(WEIGHT=1.0)

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.weight = cfg.MYKD.WEIGHT

    def forward_train(self, image, target, **kwargs):
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        loss = self.weight * np.random.rand() * kd_loss(logits_student, logits_teacher, 4.0)
        return logits_student, {"loss_ce": F.cross_entropy(logits_student, target), "loss_mine": loss}
"""


def test_a_method_from_outside_needs_one_file(train, folder, tmp_path):
    """It may draw from NumPy: two runs are equal all the same. Runs without it do not know of it."""
    plugin = tmp_path / "my_kd.py"
    plugin.write_text(PLUGIN)
    assert train(ALONE, "alone", "SOLVER.EPOCHS", 1).code == 0
    try:
        for name in ("a", "b"):
            opts = ["SOLVER.EPOCHS", 1, "DISTILLER.TYPE", "MYKD", "MYKD.WEIGHT", 0.5]
            assert train("kd/res20_res8.yaml", name, *opts, flags=["--plugin", plugin]).code == 0
        assert (
            train(ALONE, "alone", "SOLVER.EPOCHS", 2, flags=["--plugin", plugin, "--resume"]).code
            == 0
        )
    finally:
        distiller_dict.pop("MYKD", None)
    assert untimed(folder / "a") == untimed(folder / "b")
    assert records(folder / "a")[0]["train_loss_mine"] > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def", "line|SyntaxError"),
        ("import nowhere", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("import sys; sys.exit(0)", "SystemExit"),
        (
            "from edkd.distillers import register\n@register('X')\nclass X: pass",
            "must be a Distiller",
        ),
        (PLUGIN.replace("forward_train", "train_forward"), "that defines forward_train"),
        (PLUGIN.replace("WEIGHT=1.0", "WEIGHT=object()"), "defaults of MyKD in .*: Key WEIGHT"),
    ],
)
def test_a_broken_plugin_is_one_line(train, folder, tmp_path, text, message):
    plugin = tmp_path / "broken.py"
    plugin.write_text(text)
    try:
        assert_refused(train(ALONE, "run", "SOLVER.EPOCHS", 1, flags=["--plugin", plugin]), message)
    finally:
        distiller_dict.pop("MYKD", None)
    assert not folder.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_worklog_that_cannot_be_written_ends_no_run(train, folder):
    assert train(ALONE, "run", "SOLVER.EPOCHS", 1).code == 0
    (folder / "run/worklog.txt").unlink()
    (folder / "run/worklog.txt").symlink_to("/dev/full")
    again = train(ALONE, "run", "SOLVER.EPOCHS", 2, flags=["--resume"])
    assert again.code == 0
    assert re.match(
        "edkd: warning: cannot write .*worklog.txt: No space .*; the run goes on without\n$",
        again.err,
    )


def test_a_method_in_the_package_needs_one_file(tmp_path):
    """A file put into edkd/distillers/ and a YAML; nothing else is touched."""
    copy = tmp_path / "copy"
    for name in ("edkd", "tools", "configs"):
        shutil.copytree(CHECKOUT / name, copy / name)
    (copy / "edkd/distillers/mykd.py").write_text(PLUGIN)
    (copy / "mykd.yaml").write_text(
        "DATASET:\n  TYPE: digits\n"
        "DISTILLER:\n  TYPE: MYKD\n  TEACHER: resnet8\n  STUDENT: resnet8\n  TEACHER_CKPT: t\n"
        "SOLVER:\n  EPOCHS: 1\nLOG:\n  WANDB: False\nMYKD:\n  WEIGHT: 2\n"
    )
    save_checkpoint({"model": get_model("cifar", "resnet8", 10).state_dict()}, copy / "t")
    command = [sys.executable, "tools/train.py", "--cfg", "mykd.yaml"]
    done = subprocess.run(
        command,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "train_loss_mine" in (copy / "output/distill/default/metrics.jsonl").read_text()


def test_report_compares_runs_over_seeds(train, folder, tool, tmp_path):
    runs = [f"{name},SOLVER.SEED:{seed}" for name in ("a", "b") for seed in (1, 2)]
    for run in runs:
        opts = ["SOLVER.SEED", run[-1], "SOLVER.LR", 0.05 if run[0] == "a" else 0.1]
        assert train(ALONE, run, "SOLVER.EPOCHS", 1, *opts).code == 0
    done = tool("report", *(folder / run for run in runs), "--picture", tmp_path / "curves.png")
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if re.match(r"\| [ab] ", line)]
    assert len(rows) == 2
    reached = [records(folder / run)[0]["test_top1"] for run in runs[:2]]
    assert f"| 78,042 | 2 | {sum(reached) / 2:.2f} ± " in rows[0]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    once = tool("report", folder / runs[0], folder / runs[0])
    assert f"| 78,042 | 1 | {reached[0]:.2f} |" in once.out
    shutil.copytree(folder / runs[2], tmp_path / runs[0])  # the same name, another configuration
    assert (
        len(re.findall(r"\n\| a ", tool("report", folder / runs[0], tmp_path / runs[0]).out)) == 2
    )
    assert_refused(tool("report", tmp_path), "holds no finished run")
    (tmp_path / runs[0] / "result.json").write_text("[]")
    assert_refused(tool("report", tmp_path / runs[0]), "holds no finished run")
    assert_refused(
        tool("report", folder / runs[0], "--picture", tmp_path / "x.what"),
        "cannot write the picture",
    )


def test_demo(tool, tmp_path):
    words = ["--prefix", tmp_path, "--seeds", "1", "SOLVER.EPOCHS", "1"]
    first = tool("demo", *words)
    assert first.code == 0, first.err
    for name in ("teacher", "student alone", "student by EDKD"):
        assert re.search(rf"\| {name} \| [\d,]+ \| 1 \| \d", first.out)
    picture = tmp_path / "demo" / "curves.png"
    assert picture.stat().st_size > 10_000
    again = tool("demo", *words)
    assert again.code == 0
    assert again.out.split("Handwritten digits")[1] == first.out.split("Handwritten digits")[1]
    assert again.out.count("\nepoch ") == 0


@pytest.mark.parametrize(
    ("kind", "names"),
    [("tiny_imagenet", "ResNet18 ShuffleV2"), ("imagenet", "ResNet18 MobileNetV1")],
)
def test_image_folders_train(tool, tmp_path, kind, names):
    from PIL import Image

    for part in ("train", "val"):
        for label in ("n01", "n02"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for i in range(3):
                colour = (200, 20, 20 * i) if label == "n01" else (20, 200, 20 * i)
                Image.new("RGB", (64, 64), colour).save(
                    tmp_path / "data" / part / label / f"{i}.jpg"
                )
    teacher, student = names.split()
    torch.save(get_model(kind, teacher, 2).state_dict(), tmp_path / "t.pth")
    models = [
        "DISTILLER.TEACHER",
        teacher,
        "DISTILLER.STUDENT",
        student,
        "DISTILLER.TEACHER_CKPT",
        tmp_path / "t.pth",
    ]
    opts = [
        "DATASET.TYPE",
        kind,
        "DATASET.ROOT",
        tmp_path / "data",
        "DISTILLER.TYPE",
        "KD",
        "SOLVER.BATCH_SIZE",
        "4",
    ]
    done = tool(
        "train",
        *opts,
        *models,
        "SOLVER.EPOCHS",
        "1",
        "LOG.PREFIX",
        tmp_path / "o",
        "LOG.WANDB",
        "False",
    )
    assert (done.code, done.err) == (0, "")
    (run,) = (tmp_path / "o/distill").iterdir()
    evaluated = tool(
        "eval",
        "-m",
        student,
        "-c",
        run / "student_best",
        "-d",
        kind,
        "--root",
        tmp_path / "data",
        "-bs",
        2,
    )
    assert evaluated.code == 0


def shell(*words, data_root):
    env = os.environ | {"EDKD_DATA_ROOT": str(data_root)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.needs("data/cifar-100-python", "download_ckpts/cifar_teachers/resnet56_vanilla")
def test_the_published_teacher_on_real_cifar100(real_data):
    done = shell("tools/eval.py", "-m", "resnet56", "--amp", "auto", data_root=real_data)
    assert done.returncode == 0, done.stderr
    top1 = float(re.search(r"top-1 ([\d.]+) %", done.stdout)[1])
    assert top1 == pytest.approx(72.61, abs=0.15)  # 72.61 in float32; bf16 may move a few images


@pytest.mark.slow
@pytest.mark.needs("data/cifar-100-python", "download_ckpts/cifar_teachers/resnet56_vanilla")
def test_the_published_teacher_in_float32(real_data):
    done = shell("tools/eval.py", "-m", "resnet56", data_root=real_data)
    assert "resnet56 on cifar100: top-1 72.61 %" in done.stdout


@pytest.mark.needs("data/cifar-100-python", "download_ckpts/cifar_teachers/resnet56_vanilla")
def test_the_main_job_on_real_cifar100(real_data, tmp_path):
    """EDKD from the real teacher, on the part of CIFAR-100 that a large held-out split leaves."""
    words = [
        "--cfg",
        "configs/cifar100/edkd/res56_res20.yaml",
        "LOG.WANDB",
        "False",
        "LOG.PREFIX",
        tmp_path,
    ]
    words += [
        "DATASET.VAL_SPLIT",
        "0.94",
        "DATASET.TEST.BATCH_SIZE",
        "500",
        "EXPERIMENT.NAME",
        "run",
    ]
    done = shell("tools/train.py", *words, "SOLVER.EPOCHS", "1", data_root=real_data)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "cifar100_baselines/run")
    assert record["val_top1"] > 1.5  # of 100 classes, on 47,000 images


@pytest.mark.slow
def test_a_taught_student_beats_one_alone_on_digits(tool, tmp_path):
    done = tool("demo", "--prefix", tmp_path)
    assert done.code == 0
    best = dict(re.findall(r"\| ([\w ]+) \| [\d,]+ \| 3 \| [^|]+ \| ([\d.]+) ±", done.out))
    assert float(best["student by EDKD"]) > float(best["student alone"])
