"""The command train, end to end: its files, names, solvers and splits."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from edkd.engine.checkpoint import load_checkpoint
from edkd.models import get_model
from tests.commands.conftest import DIGITS
from tests.conftest import PLUGIN
from tests.runs import plain, records


def weights(run):
    return load_checkpoint(run / "student_latest")["model"]


FILES = (
    "config.yaml metrics.jsonl result.json status.json worklog.txt environment.json train.events "
    ".lock latest best epoch_1 student_latest student_best student_1"
)


def test_a_run_leaves_the_files_of_the_design(train, folder, teacher, tool):
    before = teacher.read_bytes()
    opts = ["SOLVER.EPOCHS", 1, "LOG.SAVE_CHECKPOINT_FREQ", 1]
    done = train("edkd/res20_res8.yaml", "run", *opts)
    assert (done.code, done.err) == (0, "")
    run = folder / "run"
    assert {path.name for path in run.iterdir()} == set(FILES.split())
    assert teacher.read_bytes() == before

    # Figures.
    (last,) = records(run)
    assert last["epoch"] == 1
    trained = {"lr", "train_loss", "train_loss_ce", "train_loss_kd", "train_top1", "train_seconds"}
    assert trained <= last.keys()
    assert {"test_top1", "test_top5", "test_loss", "eval_seconds"} <= last.keys()
    assert 0 <= last["data_seconds"] <= last["train_seconds"]
    assert f"last_test_top1 {last['test_top1']:.2f}" in (run / "worklog.txt").read_text()
    result = json.loads((run / "result.json").read_text())
    assert (result["method"], result["student"], result["seed"]) == ("EDKD", ["resnet8"], 1)
    assert result["settings"]["EDKD.WARMUP"] == 2
    assert list((run / "train.events").iterdir())
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]

    # Checkpoints.
    latest = load_checkpoint(run / "latest")
    assert latest["epoch"] == 1
    assert latest["best_acc"] == last["test_top1"]
    assert not [key for key in latest["model"] if key.startswith("teacher")]
    student = load_checkpoint(run / "student_latest")
    assert plain(student) == plain(load_checkpoint(run / "student_1"))
    assert (student["architecture"], student["num_classes"]) == ("resnet8", 10)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (saved["EDKD"]["WARMUP"], saved["SOLVER"]["BATCH_SIZE"]) == (2, 128)

    # The command eval reads the same figures from the file.
    evaluated = tool("eval", "-m", "resnet8", "-c", run / "student_latest", "-d", "digits")
    assert evaluated.code == 0
    assert f"top-1 {last['test_top1']:.2f} %, top-5 {last['test_top5']:.2f} %" in evaluated.out


def test_the_default_name_lists_the_keys_of_the_command_line(tool, tmp_path):
    words = ["--plugin", PLUGIN, "DATASET.TYPE", "tiny", "DISTILLER.STUDENT=narrow"]
    words += ["SOLVER.EPOCHS=1", "LOG.PREFIX", tmp_path, "LOG.WANDB", "False"]
    assert tool("train", *words).code == 0
    (run,) = (tmp_path / "distill").iterdir()
    assert run.name == "default,DATASET.TYPE=tiny,DISTILLER.STUDENT=narrow"


def test_the_student_starts_from_the_same_weights_with_any_teacher(train_tiny, tiny_folder):
    still = ["SOLVER.EPOCHS", 1, "SOLVER.LR", 1e-12, "SOLVER.WEIGHT_DECAY", 0]
    assert train_tiny("alone", *still).code == 0
    assert train_tiny("taught", "DISTILLER.TYPE", "KD", *still).code == 0
    assert train_tiny("other", *still, "SOLVER.SEED", 2).code == 0
    alone, taught, other = (
        weights(tiny_folder / name)["conv.weight"] for name in ("alone", "taught", "other")
    )
    torch.testing.assert_close(alone, taught)
    assert not torch.allclose(alone, other)


@pytest.mark.parametrize(
    "opts",
    [
        ["SOLVER.TYPE", "Adam", "SOLVER.LR", "0.01"],
        ["SOLVER.TYPE", "AdamW", "SOLVER.LR", "0.01", "SOLVER.WARMUP_EPOCHS", "1"],
        ["SOLVER.NESTEROV", "True", "SOLVER.CLIP_GRAD_NORM", "0.5"],
        ["SOLVER.SCHEDULE", "cosine", "SOLVER.AMP", "bf16"],
        ["SOLVER.MOMENTUM", "0"],
        ["SOLVER.TRAINER", "dot", "DISTILLER.TYPE", "KD"],
    ],
)
def test_solvers_learn(train_tiny, tiny_folder, opts):
    assert train_tiny("run", *opts).code == 0
    losses = [record["train_loss_ce"] for record in records(tiny_folder / "run")]
    assert losses[-1] < losses[0]


def test_clipping_bounds_the_step(train_tiny, tiny_folder):
    common = ["SOLVER.EPOCHS", 1, "SOLVER.WEIGHT_DECAY", 0]
    assert train_tiny("free", *common).code == 0
    assert train_tiny("tight", *common, "SOLVER.CLIP_GRAD_NORM", 1e-5).code == 0
    assert train_tiny("still", *common, "SOLVER.LR", 1e-12).code == 0
    start = weights(tiny_folder / "still")["conv.weight"]
    free, tight = (
        (weights(tiny_folder / name)["conv.weight"] - start).norm() for name in ("free", "tight")
    )
    assert tight < 1e-4 < 0.01 < free


def test_a_held_out_split_chooses_and_the_test_set_reports(train_tiny, tiny_folder, tool):
    assert train_tiny("run", "DATASET.VAL_SPLIT", 0.2).code == 0
    run = tiny_folder / "run"
    assert all("val_top1" in record and "test_top1" not in record for record in records(run))

    result = json.loads((run / "result.json").read_text())
    for which, name in (("last", "student_latest"), ("best", "student_best")):
        words = ["-m", "narrow", "-c", run / name, "-d", "tiny", "--plugin", PLUGIN]
        evaluated = tool("eval", *words)
        assert f"top-1 {result[f'{which}_test_top1']:.2f} %" in evaluated.out
    best = max(records(run), key=lambda record: record["val_top1"])
    assert (result["best_epoch"], result["best_val_top1"]) == (best["epoch"], best["val_top1"])


def test_a_loss_that_is_not_finite_keeps_the_files_of_the_last_epoch(train_tiny, tiny_folder):
    """The rate explodes after the first epoch."""
    opts = ["SOLVER.LR_DECAY_STAGES", "[1]", "SOLVER.LR_DECAY_RATE", "1e30"]
    assert train_tiny("run", "SOLVER.EPOCHS", 1, *opts).code == 0
    run = tiny_folder / "run"
    names = ("latest", "best", "student_latest", "student_best", "metrics.jsonl")
    before = [(run / name).read_bytes() for name in names]

    done = train_tiny("run", "SOLVER.EPOCHS", 2, *opts, "--resume")
    assert done.code == 3
    assert re.search(
        r"^edkd: error: .*loss.* not finite in epoch 2, step 2; .*; lower SOLVER", done.err
    )
    assert [(run / name).read_bytes() for name in names] == before


def test_a_diverged_run_is_named(train_tiny, tiny_folder):
    one_step = ["SOLVER.LR", "1e39", "SOLVER.BATCH_SIZE", 71, "SOLVER.EPOCHS", 1]
    done = train_tiny("diverged", *one_step)
    assert done.code == 3
    assert re.search(r"test_loss is (nan|inf)", done.err)
    assert not (tiny_folder / "diverged/latest").exists()


def test_lines_that_cannot_be_logged_end_no_run(train_tiny, tiny_folder):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert train_tiny("run", "SOLVER.EPOCHS", 1).code == 0
    (tiny_folder / "run/worklog.txt").unlink()
    (tiny_folder / "run/worklog.txt").symlink_to("/dev/full")
    again = train_tiny("run", "--resume")
    assert again.code == 0
    message = "edkd: warning: cannot write .*worklog.txt: No space .*; the run continues without it"
    assert re.match(f"{message}\n$", again.err)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "names"),
    [("tiny_imagenet", "ResNet18 ShuffleV2"), ("imagenet", "ResNet18 MobileNetV1")],
)
def test_image_folders_train(tool, tmp_path, kind, names):
    for part in ("train", "val"):
        for label in ("n01", "n02"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for i in range(3):
                blue = 20 * i if part == "train" else 100 + 20 * i
                colour = (200, 20, blue) if label == "n01" else (20, 200, blue)
                file = tmp_path / "data" / part / label / f"{i}.jpg"
                Image.new("RGB", (64, 64), colour).save(file)

    teacher, student = names.split()
    torch.save(get_model(kind, teacher, 2).state_dict(), tmp_path / "t.pth")
    models = ["DISTILLER.TEACHER", teacher, "DISTILLER.STUDENT", student]
    models += ["DISTILLER.TEACHER_CKPT", tmp_path / "t.pth", "DISTILLER.TYPE", "KD"]
    opts = ["DATASET.TYPE", kind, "DATASET.ROOT", tmp_path / "data", "SOLVER.BATCH_SIZE", "4"]
    opts += ["SOLVER.EPOCHS", "1", "LOG.PREFIX", tmp_path / "o", "LOG.WANDB", "False"]
    opts += ["DISTILLER.CHECK_TEACHER", "False"]  # it is not trained
    done = tool("train", *models, *opts)
    assert (done.code, done.err) == (0, "")

    (run,) = (tmp_path / "o/distill").iterdir()
    words = ["-m", student, "-c", run / "student_best", "-d", kind]
    evaluated = tool("eval", *words, "--root", tmp_path / "data", "-bs", 2)
    assert evaluated.code == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_cuda_trains(train, folder, amp):
    opts = ["--device", "cuda", "SOLVER.AMP", amp, "SOLVER.CLIP_GRAD_NORM", 5.0]
    config = "edkd/res20_res8.yaml"
    assert train(config, "run", "SOLVER.EPOCHS", 2, *opts).code == 0
    assert train(config, "run", "SOLVER.EPOCHS", 3, *opts, "--resume").code == 0
    losses = [record["train_loss_ce"] for record in records(folder / "run")]
    assert losses[-1] < losses[0]


def test_every_configuration_of_the_digits_loads(tool, tmp_path):
    """Refused for a mistake in the last key that is checked; nothing is trained."""
    for file in sorted(DIGITS.glob("*/*.yaml")):
        words = ["--cfg", file, "LOG.PREFIX", tmp_path / "o", "SOLVER.EPOCHS", "0"]
        done = tool("train", *words)
        assert done.code == 2
        assert "SOLVER.EPOCHS is 0, but must be at least 1" in done.err
