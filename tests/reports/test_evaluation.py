"""Evaluation of trained networks: run folders, plugins, data sets, classes; after reports."""

import itertools
import json
import re
import shutil

import pytest
import torch

from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.file_facts import Use
from edkd.engine.saved_run import Request, find_trained, path_from_here
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from edkd.registry import MODELS
from edkd.types import DataInfo
from tests.conftest import PLUGIN, forget_tiny
from tests.reliability.files import picture
from tests.runs import assert_refused
from tests.small import IMAGE_SHAPE, TinyNet

ONE_EPOCH = ("SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", "[]")


@pytest.fixture
def run(train_tiny, tmp_path):
    """The folder of a finished run; its plugin is not imported any more."""

    def make(name, *opts):
        done = train_tiny(name, *ONE_EPOCH, *opts)
        assert done.code == 0, done.err
        forget_tiny()
        return tmp_path / "distill" / name

    return make


def figures(outcome):
    """ "top-1 ... %, loss ..." of the line that eval printed."""
    assert outcome.code == 0, outcome.err
    return outcome.out.split(": ", 1)[1].split(" (")[0]


def test_a_run_is_evaluated_by_its_folder(tool, run):
    """aimagelab/VKD #19 is one of many: evaluation with other words than the training's fails.

    The folder of a run knows the model, the data and the plugins; so do the files in it.
    """
    folder = run("a")
    by_folder = tool("eval", folder)
    assert by_folder.out.startswith("narrow on tiny: top-1 ")
    assert f"{folder}/student_best" in by_folder.out

    explicit = ["-m", "narrow", "-d", "tiny", "--plugin", PLUGIN, "-c", folder / "student_best"]
    others = [
        explicit,
        ["-c", folder],
        ["-c", folder / "student_latest"],
        ["-c", folder / "latest"],
        [folder, "--which", "latest"],
        [folder, "--which", "student_latest"],
        ["-m", "narrow", "-c", folder / "student_best"],
    ]
    for words in others:
        forget_tiny()
        assert figures(tool("eval", *words)) == figures(by_folder), words


def test_the_precision_of_an_evaluation(tool, run):
    """It is printed as computed, also where a key gives it."""
    folder = run("a")
    assert "(float32; " in tool("eval", folder).out
    for words in (["--amp", "bf16"], ["SOLVER.AMP", "bf16"]):
        forget_tiny()
        assert "(precision bf16; " in tool("eval", folder, *words).out


def test_a_numbered_epoch(tool, run):
    """`--which` takes the number of an epoch; where there is none, the message lists the files."""
    folder = run("a", "LOG.SAVE_CHECKPOINT_FREQ", 1)
    assert "student_1)" in tool("eval", folder, "--which", 1).out
    assert_refused(tool("eval", folder, "--which", 7), f"--which 7: {folder} has no student_7")
    assert_refused(tool("eval", folder, "--which", "lates"), "did you mean 'latest'?")


def test_each_student_of_a_cohort(tool, run):
    """The students of a cohort are evaluated by name; the folder alone means the best of them."""
    folder = run("a", "DISTILLER.TYPE", "DML", "DML.NUM_STUDENTS", 2)
    result = json.loads((folder / "result.json").read_text())
    best = result["best_student"].split()[0]
    for name in ("student1", "student2"):
        top1 = f"top-1 {result[f'best_test_{name}_top1']:.2f} %"
        assert figures(tool("eval", folder, "--which", f"{name}_best")).startswith(top1)
    best_file = [folder, "--which", f"{best}_best"]
    assert figures(tool("eval", folder)) == figures(tool("eval", *best_file))


def test_keys_of_the_run_are_kept(tool, run, tmp_path):
    """A network that was made with keys of its own, as its width, is evaluated with them."""
    plugin = tmp_path / "sized.py"
    plugin.write_text(
        "from edkd.registry import MODELS\n"
        "from tests.small import TinyNet\n"
        "@MODELS.register('sized', family='tiny', defaults=dict(CHANNELS=3))\n"
        "def sized(num_classes, channels):\n"
        "    return TinyNet(channels, num_classes)\n"
    )
    try:
        folder = run(
            "a", "--plugin", plugin, "DISTILLER.STUDENT", "sized", "MODEL.sized.CHANNELS", 5
        )
        MODELS.remove("sized", "tiny")
        assert figures(tool("eval", folder))
    finally:
        MODELS.remove("sized", "tiny")


def test_keys_of_the_run_are_kept_where_its_model_and_data_are_given(tmp_path):
    """Another test split has training images in it. A plugin that is gone may not be needed."""
    text = "DATASET: {TYPE: folder, TEST_SPLIT: 0.5}\nDISTILLER: {STUDENT: cifar/resnet8}\n"
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "environment.json").write_text(json.dumps({"plugins": [f"{tmp_path}/gone.py"]}))
    file = tmp_path / "student_best"
    save_checkpoint({"model": TinyNet().state_dict()}, file)

    for dataset, share in (("folder", 0.5), ("digits", 0.2)):
        found = find_trained(Request(str(file), model="cifar/resnet8", dataset=dataset))
        assert found.run is not None
        split = found.cfg.DATASET.TEST_SPLIT
        assert split == share
    with pytest.raises(UserError, match=r"the plugin .*gone.py of the run"):
        find_trained(Request(str(file)))


def test_a_run_on_images_of_a_relative_folder(tool, tiny, tmp_path, monkeypatch):
    """A run was started in another folder, from which its DATASET.ROOT is meant.

    A folder of the same name here is not that of the run.
    """
    for split, name in itertools.product(("train", "val"), "ab"):
        folder = tmp_path / "there" / "images" / split / name
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{number}.png").write_bytes(picture())
    monkeypatch.chdir(tmp_path / "there")
    words = [*tiny, "a", *ONE_EPOCH, "DATASET.TYPE", "tiny_folder", "DATASET.ROOT", "images"]
    assert tool("train", *words, "DATASET.NUM_WORKERS", 0, "SOLVER.BATCH_SIZE", 2).code == 0

    forget_tiny()
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    assert figures(tool("eval", tmp_path / "distill" / "a"))
    forget_tiny()
    done = tool("eval", tmp_path / "distill" / "a", "--root", "elsewhere")
    assert_refused(done, "elsewhere")


def test_paths_of_a_run(tmp_path, monkeypatch):
    """They are relative to the folder of its command, or to this one where nothing is there."""
    for name in ("there/both", "here/both", "here/moved", "there/pretrained"):
        (tmp_path / name).mkdir(parents=True)
    there = str(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")

    assert path_from_here("both", there) == f"{there}/both"
    for path in ("moved", "gone", "", "pretrained", str(tmp_path / "here")):
        assert path_from_here(path, there) == path
    assert path_from_here("both", "") == "both"


def test_a_plugin_that_moved(tool, tiny, tmp_path):
    """The message names the plugin that is gone. --plugin gives its present place."""
    plugin = tmp_path / "parts.py"
    shutil.copy(PLUGIN, plugin)
    words = [str(plugin) if word == str(PLUGIN) else word for word in tiny]
    assert tool("train", *words, "a", *ONE_EPOCH).code == 0
    folder = tmp_path / "distill" / "a"
    forget_tiny()
    about = json.loads((folder / "environment.json").read_text())
    assert str(plugin) in about["plugins"]

    moved = tmp_path / "elsewhere.py"
    plugin.rename(moved)
    assert_refused(tool("eval", folder), f"the plugin {plugin} of the run {folder} is not there")
    forget_tiny()
    assert figures(tool("eval", folder, "--plugin", moved))
    forget_tiny()


def test_a_path_that_is_no_run(tool, run, tmp_path):
    """A project's folder is not a run: the message names the runs in it."""
    folder = run("a")
    assert_refused(tool("eval", folder.parent), f"give one of the runs in it: {folder}")
    assert_refused(tool("eval", tmp_path / "none"), "no file of weights and no folder of a run at")
    file = folder / "student_best"
    assert_refused(tool("eval", "-c", file, "--which", 1), "--which 1 chooses in a run's folder")
    assert_refused(tool("eval", folder, "-c", folder), "two files of weights are given")
    (folder / "config.yaml").write_text("[")
    assert_refused(tool("eval", folder), "config.yaml cannot be read")


def test_a_misspelt_path(tool, tmp_path, monkeypatch):
    """A word without a separator was taken for a key, and the message did not name it."""
    (tmp_path / "student_best").touch()
    monkeypatch.chdir(tmp_path)
    message = "no file or folder studnt_best, did you mean 'student_best'?"
    for words in ([], ["SOLVER.AMP", "off"], ["SOLVER.AMP=off"]):
        assert_refused(tool("eval", "studnt_best", *words), re.escape(message))
    assert_refused(tool("eval", "weights.pth"), "no file or folder weights.pth")
    assert_refused(tool("eval", "-m", "resnet8", "SOLVER.AMP"), "'SOLVER.AMP' has no value")
    assert_refused(tool("eval", "-m", "resnet8", "DATASET.ROOT", "a=b"), "DATASET.ROOT a=b")


def test_which_without_a_run(tool):
    done = tool("eval", "-m", "resnet8", "--which", "latest")
    assert_refused(done, "--which latest chooses in a run's folder; give one")


def test_a_run_on_data_of_its_own(tool, tmp_path):
    """A run of `edkd.distill` had data that no name stands for: the message says so."""
    save_checkpoint({"model": TinyNet().state_dict()}, tmp_path / "student_best")
    text = "DATASET: {TYPE: custom}\nDISTILLER: {STUDENT: TinyNet, TYPE: KD}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert_refused(tool("eval", tmp_path), "the data set 'custom', which is not registered")
    words = ["eval", tmp_path, "--plugin", PLUGIN, "-d", "tiny"]
    assert_refused(tool(*words), "of the model 'TinyNet', which is not registered for tiny")
    assert figures(tool(*words, "-m", "narrow"))


# A file far from its run.


def test_the_configuration_of_another_system(tool, tmp_path):
    """Weights of another system lie beside its own config.yaml, which is not that of a run."""
    save_checkpoint({"state_dict": TinyNet(6).state_dict()}, tmp_path / "w.pth")
    for text in ("model: resnet\n", "a: !!python/tuple [1]\n", "[", "3"):
        (tmp_path / "config.yaml").write_text(text)
        words = ["--plugin", PLUGIN, "-d", "tiny", "-c", tmp_path / "w.pth"]
        assert_refused(tool("eval", *words), "does not name its model")
        assert figures(tool("eval", "-m", "narrow", *words))


@pytest.fixture
def copied(run, tmp_path):
    """A student's file that was copied away from its run."""

    def copy(**changes):
        source = run("a") if not (tmp_path / "distill").exists() else tmp_path / "distill" / "a"
        content = load_checkpoint(source / "student_best") | changes
        file = tmp_path / "copied.pth"
        torch.save({key: value for key, value in content.items() if value is not None}, file)
        return file

    return copy


def test_a_copied_file_names_its_model_and_data(tool, copied):
    """A user wants the accuracy of a file alone. Its model and data set stand in it."""
    file = copied(dataset="tiny")
    assert tool("eval", "-c", file, "--plugin", PLUGIN).out.startswith("narrow on tiny")

    words = ["--plugin", PLUGIN, "-d", "tiny", "-c", file]
    assert tool("eval", *words).out.startswith("narrow on tiny")
    assert_refused(tool("eval", "-m", "wide", *words), "the file names the model narrow: -m narrow")
    forget_tiny()
    assert_refused(tool("eval", "-c", file), "the data set 'tiny', which is not registered")


def test_a_file_that_does_not_name_its_data(tool, copied):
    """The default data set has another number of classes: the message is not about its download."""
    file = copied(dataset=None, class_names=["a", "b", "c", "d"])
    message = r"was trained on 4 classes \(a, b, c, ...\); give that data set with -d"
    assert_refused(tool("eval", "-c", file, "--plugin", PLUGIN), message)
    assert_refused(tool("eval", "-m", "narrow", "-c", file, "--plugin", PLUGIN), message)


def test_the_right_data_set_is_suggested(tool, copied):
    """A student of one data set is evaluated on another one: the message names the right one."""
    file = copied(dataset="tiny")
    words = ["eval", "-m", "resnet8", "-c", file]
    done = tool(*words, "-d", "digits")
    assert_refused(done, "trained on the 4 classes of tiny, but the data set digits has 10")
    assert "write -d tiny" in done.err
    done = tool(*words, "-d", "cifar100", "--root", "nowhere")
    assert_refused(done, "the weights are of the data set tiny: -d tiny")


# Classes.

NAMES = ("cat", "dog", "frog", "horse")


def info(names):
    return DataInfo(len(names) or 4, 40, None, IMAGE_SHAPE, class_names=tuple(names))


def student(tmp_path, **facts):
    file = tmp_path / "student_best"
    save_checkpoint({"model": TinyNet().state_dict(), "num_classes": 4, **facts}, file)
    return file


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("cat", "frog", "dog", "horse"), "class 1 is 'dog' there, but 'frog' in the data set"),
        (("cat", "dog", "frog", "zebra"), "class 3 is 'horse' there, but 'zebra' in the data set"),
    ],
)
def test_other_classes_are_refused(tmp_path, names, named):
    """Folders are sorted by name, so a renamed class moves others; accuracy then is chance.

    The names of the classes in the file are compared with those of the data.
    """
    file = student(tmp_path, class_names=list(NAMES))
    with pytest.raises(UserError, match=named):
        load_weights(TinyNet(), file, Use(info(names), "pets", "narrow", "-m", "-d"))
    with pytest.raises(UserError, match="give a DISTILLER.TEACHER that was trained on the classes"):
        load_weights(TinyNet(), file, Use(info(names), "pets", "narrow"))
    load_weights(TinyNet(), file, Use(info(NAMES), "pets", "narrow"))


@pytest.mark.parametrize("facts", [{}, {"class_names": []}, {"class_names": "abcd"}])
def test_unknown_classes_are_not_compared(tmp_path, facts):
    """Older files have no names, and some data sets have none."""
    load_weights(TinyNet(), student(tmp_path, **facts), Use(info(NAMES), "pets", "narrow"))
    file = student(tmp_path, class_names=list(NAMES))
    load_weights(TinyNet(), file, Use(info(()), "pets", "narrow"))


def test_a_teacher_of_other_classes_is_refused(train_tiny, tmp_path):
    """A teacher of other classes would teach nonsense: training does not start."""
    state = TinyNet(channels=12).state_dict()
    save_checkpoint({"model": state, "num_classes": 5, "dataset": "birds"}, tmp_path / "t")
    done = train_tiny("a", "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", tmp_path / "t")
    assert_refused(done, "trained on the 5 classes of birds, but the data set tiny has 4")
    assert not (tmp_path / "distill").exists()
