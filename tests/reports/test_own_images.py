"""What new and careless users with images of their own give the commands."""

import shlex
import shutil

import pytest
import torch
from PIL import Image

from edkd.commands.check_data import main as check_data
from edkd.commands.export import main as export
from edkd.commands.finetune import main as finetune
from edkd.commands.train import main as train
from edkd.dataset import get_dataset
from edkd.engine.config.load import load_config
from edkd.errors import UserError

MODEL = "cifar/resnet8"


def write(folder, number, color="red"):
    """Different images of one color."""
    folder.mkdir(parents=True)
    for side in range(8, 8 + number):
        Image.new("RGB", (side, side), color).save(folder / f"{side}.png")


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes, in a path with a blank."""
    root = tmp_path / "my photos"
    write(root / "a", 4)
    write(root / "b", 4, "blue")
    return root


def command_in(error):
    """The words after `train` of the command in a message."""
    words = shlex.split(str(error.value).partition("train it with '")[2].partition("' and give")[0])
    return words[words.index("train") + 1 :]


def test_the_command_of_a_hint_takes_keys(photos, tmp_path, monkeypatch):
    """It had the words of `finetune` instead, as `MODEL`, and not the folder of the images."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--from: no weights of cifar/resnet8") as error:
        finetune([MODEL, "--from", "none.pth", "DATASET.ROOT", str(photos)])

    words = command_in(error)
    assert {"DISTILLER.STUDENT", "DATASET.ROOT", str(photos)} <= {*words}
    train([*words, "SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "4", "EXPERIMENT.NAME", "hint"])
    assert (tmp_path / "output/folder/hint/student_best").is_file()


@pytest.mark.slow
def test_a_share_for_a_test_set_that_is_there(tmp_path, capsys):
    """DATASET.TEST_SPLIT was accepted without a word beside `val`, where it changes nothing."""
    for part in ("train", "val"):
        write(tmp_path / part / "a", 2)
        write(tmp_path / part / "b", 2, "blue")
    keys = ["DATASET.ROOT", str(tmp_path), "DATASET.FOLDER.SIZE", "8", "DATASET.TEST_SPLIT", "0.5"]
    cfg = load_config("configs/folder/vanilla.yaml", keys)

    get_dataset(cfg, torch.device("cpu"))
    assert "DATASET.TEST_SPLIT 0.5 has no effect" in capsys.readouterr().err


def test_check_data_names_a_class_with_a_single_image(photos, capsys):
    """It said that nothing was wrong, and training refused the folder."""
    write(photos / "c", 1)
    with pytest.raises(UserError, match=r"classes with a single image \(1\)"):
        check_data([str(photos), "--workers", "0"])
    assert f"one image in {photos / 'c'}" in capsys.readouterr().out


def test_check_data_warns_of_a_single_class(tmp_path, capsys):
    """Without a word, as of a folder one level too high."""
    write(tmp_path / "photos" / "a", 3)
    check_data([str(tmp_path / "photos"), "--workers", "0"])
    assert "has a single class, 'a'" in capsys.readouterr().err


def test_a_file_of_weights_is_exported_without_the_images(photos, tmp_path, monkeypatch, capsys):
    """Taken out of its run, it was refused with a hint at a key that `export` does not take."""
    monkeypatch.chdir(tmp_path)
    short = ["SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "4", "DATASET.FOLDER.SIZE", "8"]
    keys = ["DATASET.ROOT", str(photos), "DISTILLER.STUDENT", MODEL, "EXPERIMENT.NAME", "run"]
    train(["--cfg", "configs/folder/vanilla.yaml", *keys, *short])
    shutil.move("output/folder/run/student_best", "mine")

    export(["mine", "--to", "safetensors"])
    out = capsys.readouterr().out
    assert "random images, because the test set cannot be read (DATASET.TYPE folder needs" in out
    assert (tmp_path / "mine.safetensors").is_file()
