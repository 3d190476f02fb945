"""The commands on the real CIFAR-100, with the published teacher; skipped where they are absent."""

import os
import re
import subprocess
import sys

import pytest

from edkd.registry import DATASETS
from tests.runs import CHECKOUT, records

TEACHER = "download_ckpts/cifar_teachers/resnet56_vanilla/ckpt_epoch_240.pth"
CIFAR = "data/cifar-100-python"
PART = CHECKOUT / "tests" / "commands" / "cifar_part.py"


@pytest.fixture
def part():
    """The data set of the plugin is registered during the test only."""
    yield ["--plugin", PART]
    DATASETS.remove("cifar100_part")


@pytest.mark.needs(CIFAR, TEACHER)
def test_the_published_teacher_on_a_part_of_cifar100(tool, real_data, part):
    words = ["-m", "resnet56", "-c", real_data / TEACHER, "-d", "cifar100_part"]
    done = tool("eval", *part, *words, "--root", real_data / "data")
    assert done.code == 0
    top1 = float(re.search(r"top-1 ([\d.]+) %", done.out)[1])
    assert top1 == pytest.approx(72.61, abs=7)  # three standard errors


@pytest.mark.needs(CIFAR, TEACHER)
def test_the_main_job_on_a_part_of_cifar100(tool, real_data, part, tmp_path):
    """EDKD from the real teacher."""
    words = ["--cfg", CHECKOUT / "configs/cifar100/edkd/res56_res20.yaml"]
    words += ["DATASET.TYPE", "cifar100_part", "DATASET.ROOT", real_data / "data"]
    words += ["DISTILLER.TEACHER_CKPT", real_data / TEACHER, "SOLVER.BATCH_SIZE", "32"]
    words += ["SOLVER.EPOCHS", "1", "SOLVER.AMP", "off"]
    words += ["LOG.WANDB", "False", "LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", "run"]
    done = tool("train", *part, *words)
    assert done.code == 0, done.err
    (record,) = records(tmp_path / "cifar100_baselines/run")
    assert record["train_loss_ce"] > 3  # of 100 classes, after four steps
    assert record["train_loss_kd"] > 0
    assert "128 to compute" in done.out


def shell(*words, data_root):
    """A command in an interpreter of its own, which finds its data in `data_root`."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=CHECKOUT,
        env=os.environ | {"EDKD_DATA_ROOT": str(data_root)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.needs(CIFAR)
def test_an_absent_published_teacher_names_both_remedies(real_data, tmp_path):
    (tmp_path / "data").symlink_to(real_data / "data")
    words = ["--cfg", "configs/cifar100/kd.yaml", "LOG.PREFIX", tmp_path / "o"]
    done = shell("tools/train.py", *words, data_root=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    weights = "download_ckpts/cifar_teachers/resnet32x4_vanilla/ckpt_epoch_240.pth"
    for word in (
        str(tmp_path / weights),
        "python tools/download.py teachers",
        "python tools/train.py --cfg configs/cifar100/vanilla/resnet32x4.yaml",
    ):
        assert word in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.needs(CIFAR, TEACHER)
def test_the_main_job_as_typed(real_data, tmp_path):
    """EDKD on the images that a large held-out split leaves, found below EDKD_DATA_ROOT."""
    words = ["--cfg", "configs/cifar100/edkd/res56_res20.yaml", "LOG.WANDB", "False"]
    words += ["LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", "run", "SOLVER.EPOCHS", "1"]
    words += ["DATASET.VAL_SPLIT", "0.94", "DISTILLER.CHECK_TEACHER", "False"]  # 47,000 images
    done = shell("tools/train.py", *words, data_root=real_data)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "cifar100_baselines/run")
    assert record["val_top1"] > 1.5  # of 100 classes, on 47,000 images


@pytest.mark.slow
@pytest.mark.needs(CIFAR, TEACHER)
def test_the_published_teacher_reaches_its_accuracy(real_data):
    done = shell("tools/eval.py", "-m", "resnet56", data_root=real_data)
    assert done.returncode == 0, done.stderr
    assert "resnet56 on cifar100: top-1 72.61 %" in done.stdout


@pytest.mark.slow
@pytest.mark.needs(CIFAR, TEACHER)
def test_the_published_teacher_in_mixed_precision(real_data):
    done = shell("tools/eval.py", "-m", "resnet56", "--amp", "auto", data_root=real_data)
    assert done.returncode == 0, done.stderr
    top1 = float(re.search(r"top-1 ([\d.]+) %", done.stdout)[1])
    assert top1 == pytest.approx(72.61, abs=0.15)  # bf16 may move a few images
