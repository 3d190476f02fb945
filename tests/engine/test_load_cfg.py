"""The configuration: published files merge, everything else is refused in one line that names the key."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edkd.distillers import Distiller, distiller_dict
from edkd.engine import cfg as defaults
from edkd.engine.load_cfg import changed_keys, flatten, load_cfg, saved_config
from edkd.errors import UserError
from edkd.models import model_names

CONFIGS = Path(__file__).parents[2] / "configs"


def write(tmp_path, text, name="x.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_that_ships_is_valid(path):
    cfg = load_cfg(str(path))
    node = cfg.DISTILLER.TYPE
    assert node == "NONE" or node.lower() in path.parts[-2:] or path.stem == node.lower()


PAIRS = [
    "wrn40_2_wrn_16_2",
    "wrn40_2_wrn_40_1",
    "wrn40_2_shuv1",
    "res56_res20",
    "res56_shuv1",
    "res110_res20",
    "res110_res32",
    "res110_shuv1",
    "res32x4_res8x4",
    "res32x4_shuv1",
    "res32x4_shuv2",
    "vgg13_vgg8",
    "vgg13_mv2",
    "res50_mv2",
    "res50_vgg8",
    "res50_shuv1",
]
DKD_BETA = dict(res56_res20=2, res110_res20=2, res110_res32=2, vgg13_vgg8=6, vgg13_mv2=6)
DKD_BETA |= dict(wrn40_2_wrn_16_2=6, wrn40_2_wrn_40_1=6)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", ["kd", "dkd", "edkd"])
def test_every_published_pair_has_its_file(pair, method):
    path = CONFIGS / "cifar100" / method / f"{pair}.yaml"
    cfg = load_cfg(str(path))
    light = cfg.DISTILLER.STUDENT.startswith(("Shuffle", "Mobile"))
    assert (method.upper(), 0.01 if light else 0.05) == (cfg.DISTILLER.TYPE, cfg.SOLVER.LR)
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BATCH_SIZE) == (240, 5e-4, 64)
    assert (DKD_BETA.get(pair, 8) if method == "dkd" else 8) == cfg.DKD.BETA
    assert f"{cfg.DISTILLER.TEACHER} -> {cfg.DISTILLER.STUDENT}, CIFAR-100: " in path.read_text().splitlines()[0]


@pytest.mark.parametrize(("folder", "family"), [("cifar100", "cifar"), ("tiny_imagenet",) * 2, ("imagenet",) * 2])
def test_every_model_can_be_trained_alone(folder, family):
    for name in model_names(family):
        cfg = load_cfg(str(CONFIGS / folder / "vanilla" / f"{name}.yaml"))
        assert (folder, "NONE", name) == (cfg.DATASET.TYPE, cfg.DISTILLER.TYPE, cfg.DISTILLER.STUDENT)


def test_the_other_published_files():
    for pair in ("r34_r18", "r50_mv1"):
        for method in ("kd", "dkd", "edkd"):
            assert method.upper() == load_cfg(str(CONFIGS / f"imagenet/{pair}/{method}.yaml")).DISTILLER.TYPE
    teacher = load_cfg(str(CONFIGS / "cifar10/vanilla/ResNet18.yaml")).SOLVER
    assert (teacher.TYPE, teacher.LR, teacher.SCHEDULE, teacher.EPOCHS) == ("Adam", 0.01, "cosine", 100)
    student = load_cfg(str(CONFIGS / "cifar10/kd/ResNet18_res20.yaml"))
    assert (student.KD.TEMPERATURE, student.KD.LOSS.KD_WEIGHT, student.KD.LOSS.CE_WEIGHT) == (20.0, 0.1, 0.9)
    assert student.DISTILLER.TEACHER == "ResNet18"


def test_every_file_says_what_was_published():
    heads = {path: path.read_text().splitlines()[0] for path in CONFIGS.rglob("*.yaml")}
    assert [
        path
        for path, head in heads.items()
        if not re.match(r"# .*(top-1 \d\d\.\d\d as published|none published)", head)
    ] == []


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("cifar100/dkd/res56_res20.yaml", "DKD.BETA", 2.0),
        ("cifar100/dkd/res32x4_res8x4.yaml", "DKD.BETA", 8.0),
        ("cifar100/dkd/vgg13_mv2.yaml", "DKD.BETA", 6.0),
        ("cifar100/dkd/res50_mv2.yaml", "SOLVER.LR", 0.01),
        ("cifar100/edkd/res56_res20.yaml", "EDKD.BETA", 8.0),
        ("cifar100/edkd/res50_shuv1.yaml", "DISTILLER.TEACHER", "ResNet50"),
        ("cifar100/kd.yaml", "KD.LOSS.KD_WEIGHT", 0.9),
        ("cifar100/kd.yaml", "SOLVER.WEIGHT_DECAY", 0.0005),
        ("imagenet/r34_r18/dkd.yaml", "DKD.BETA", 0.5),
        ("imagenet/r50_mv1/kd.yaml", "KD.TEMPERATURE", 1.0),
        ("imagenet/r50_mv1/dkd.yaml", "SOLVER.BATCH_SIZE", 512),
    ],
)
def test_published_values(file, key, value):
    assert dict(flatten(load_cfg(str(CONFIGS / file))))[key] == value


def test_published_defaults():
    leaves = dict(flatten(load_cfg()))
    published = {
        "SOLVER.BATCH_SIZE": 64,
        "SOLVER.EPOCHS": 240,
        "SOLVER.LR": 0.05,
        "SOLVER.LR_DECAY_STAGES": [150, 180, 210],
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.MOMENTUM": 0.9,
        "DATASET.TYPE": "cifar100",
        "LOG.TENSORBOARD_FREQ": 500,
        "LOG.SAVE_CHECKPOINT_FREQ": 40,
        "LOG.WANDB": True,
        "KD.TEMPERATURE": 4.0,
        "KD.LOSS.CE_WEIGHT": 0.1,
        "DKD.BETA": 8.0,
        "DKD.WARMUP": 20,
        "EDKD.FORM": "paper",
    }
    assert {key: leaves[key] for key in published} == published


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["SOLVER.LR", "1"], "SOLVER.LR", 1.0),
        (["SOLVER.LR", "1e-3"], "SOLVER.LR", 1e-3),
        (["SOLVER.LR_DECAY_STAGES", "[7,9,11]"], "SOLVER.LR_DECAY_STAGES", [7, 9, 11]),
        (["SOLVER.LR_DECAY_STAGES", "(7, 9)"], "SOLVER.LR_DECAY_STAGES", [7, 9]),
        (["SOLVER.LR_DECAY_STAGES", "[]"], "SOLVER.LR_DECAY_STAGES", []),
        (["SOLVER.AMP", "off"], "SOLVER.AMP", "off"),
        (["EXPERIMENT.NAME", "007"], "EXPERIMENT.NAME", "007"),
        (["EXPERIMENT.TAG", "a: b, c"], "EXPERIMENT.TAG", "a: b, c"),
        (["EXPERIMENT.NAME", ""], "EXPERIMENT.NAME", ""),
        (["LOG.WANDB", "False"], "LOG.WANDB", False),
        (["DKD.WARMUP", "0"], "DKD.WARMUP", 0),
    ],
)
def test_the_command_line_is_read_as_meant(words, key, value):
    result = dict(flatten(load_cfg(opts=words)))[key]
    assert result == value
    assert type(result) is type(value)


def test_yaml_is_read_as_meant(tmp_path):
    cfg = load_cfg(write(tmp_path, "EXPERIMENT:\n  NAME:\nSOLVER:\n  LR: 1\n  WEIGHT_DECAY: 5e-4\n  AMP: off\nLOG:\n"))
    assert (cfg.EXPERIMENT.NAME, cfg.SOLVER.LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.AMP) == ("", 1.0, 5e-4, "off")
    assert cfg.is_frozen()


BAD_OPTIONS = [
    (["SOLVER.LRR", "1"], r"unknown key SOLVER.LRR \(command line\), did you mean 'SOLVER.LR'"),
    (["SLOVER.LR", "1"], "unknown key SLOVER.*did you mean 'SOLVER'"),
    (["LR", "1"], "unknown key LR.*"),
    (["SOLVER.LR", "1", "SOLVER.EPOCHS"], "'SOLVER.EPOCHS' has no partner"),
    (["SOLVER.LR", "fast"], "SOLVER.LR.*'fast' is not of type float"),
    (["SOLVER.EPOCHS", "1.5"], "SOLVER.EPOCHS.*not of type int"),
    (["SOLVER.EPOCHS", "True"], "SOLVER.EPOCHS.*not of type int"),
    (["SOLVER.EPOCHS", "-1"], "SOLVER.EPOCHS is -1, but must be at least 1"),
    (["SOLVER.LR", ".nan"], "SOLVER.LR.*nan is not a finite number"),
    (["SOLVER.LR", ".inf"], "SOLVER.LR.*inf is not a finite number"),
    (["SOLVER.LR_DECAY_STAGES", "[1, x]"], "SOLVER.LR_DECAY_STAGES.*'x' is not of type int"),
    (["SOLVER.LR_DECAY_STAGES", "[-1]"], "SOLVER.LR_DECAY_STAGES.*at least 0"),
    (["SOLVER.LR_DECAY_STAGES", "[1"], "cannot read the value"),
    (["SOLVER", "1"], "SOLVER .*is a group of keys"),
    (["SOLVER.TYPE", "SDG"], "SOLVER.TYPE is 'SDG', not one of SGD.*did you mean 'SGD'"),
    (["SOLVER.AMP", "fp32"], "SOLVER.AMP is 'fp32', not one of"),
    (["SOLVER.BETAS", "[0.9]"], "SOLVER.BETAS.*two numbers"),
    (["SOLVER.TRAINER", "bass"], "SOLVER.TRAINER.*did you mean 'base'"),
    (["DATASET.TYPE", "cifar10O"], "DATASET.TYPE.*did you mean 'cifar10"),
    (["DATASET.VAL_SPLIT", "1.0"], "DATASET.VAL_SPLIT.*below 1"),
    (["DISTILLER.TYPE", "EDDK"], "DISTILLER.TYPE is 'EDDK'.*did you mean 'EDKD'"),
    (["DISTILLER.STUDENT", "resnt20"], "DISTILLER.STUDENT.*did you mean 'resnet20'"),
    (["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "resnet50"], "DISTILLER.TEACHER is 'resnet50'.*did you mean"),
    (["SOLVER.LR", "2020-13-45"], "SOLVER.LR"),
    (["SOLVER.LR", "1" + 400 * "0"], "SOLVER.LR"),
    (["SOLVER.EPOCHS", "1" + 5000 * "0"], "SOLVER.EPOCHS"),
    (["SOLVER.EPOCHS", "!!int abc"], "SOLVER.EPOCHS"),
    (["EDKD.FORM", "papre"], "EDKD.FORM is 'papre', not one of paper, reference, did you mean 'paper'"),
    (["KD.LOSS.CE_WEIGHT", "-1"], "KD.LOSS.CE_WEIGHT is -1.0, but must be at least 0"),
    (["KD.TEMPERATURE", "0"], "KD.TEMPERATURE is 0.0"),
    (["DKD.WARMUP", "-2"], "DKD.WARMUP is -2"),
]


@pytest.mark.parametrize(("words", "message"), BAD_OPTIONS)
def test_bad_options_are_named(words, message):
    with pytest.raises(UserError, match=message):
        load_cfg(opts=words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER:\n  LR: 0.1\n  LR: 0.2\n", "not valid YAML: the key LR is written twice.*line 3"),
        ("SOLVER:\n  LR: .nan\n", "SOLVER.LR .*nan is not a finite number"),
        ("SOLVER: [\n", "not valid YAML"),
        ("- a\n", "holds list, not KEY"),
        ("SOLVER:\n  EPOCS: 3\n", "unknown key SOLVER.EPOCS .*did you mean 'SOLVER.EPOCHS'"),
        ("a: !!python/object/apply:os.system ['touch executed']\n", "not valid YAML"),
        ("SOLVER: 3\n", "is a group of keys"),
        ("1: 2\n", "unknown key 1"),
        ("? [a]\n: 2\n", "not valid YAML: a key is not a word"),
        ("DATASET:\n  TYPE: [digits]\n", r"DATASET.TYPE .*\['digits'\] is not of type str"),
        ("SOLVER:\n  LR: !!int abc\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        load_cfg(write(tmp_path, text))


def test_what_is_not_yaml_is_not_read(tmp_path):
    executed = tmp_path / "executed"
    for name in ("x.py", "x.txt", "x"):
        with pytest.raises(UserError, match=r"a configuration is a .yaml file"):
            load_cfg(write(tmp_path, f"open({str(executed)!r}, 'w')", name))
    assert not executed.exists()


def test_a_missing_file_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"no such file, did you mean '.*res56_res20.yaml'"):
        load_cfg(str(CONFIGS / "cifar100/edkd/res56_rse20.yaml"))
    with pytest.raises(UserError, match="no such file"):
        load_cfg("nowhere/x.yaml")


def test_changed_keys_forgives_what_does_not_change_a_step():
    before = saved_config(load_cfg().dump())
    same = ["SOLVER.EPOCHS", "3", "LOG.WANDB", "False", "EXPERIMENT.TAG", "x", "KD.TEMPERATURE", "2"]
    assert changed_keys(before, load_cfg(opts=same)) == []
    assert changed_keys(before, load_cfg(opts=["SOLVER.LR", "0.1"])) == ["SOLVER.LR was 0.05 and is 0.1"]
    del before["SOLVER.NESTEROV"]  # as saved before there was such a key
    assert changed_keys(before, load_cfg()) == []
    assert changed_keys(before, load_cfg(opts=["SOLVER.NESTEROV", "True"])) != []


PLUGIN = """
from edkd.distillers import Distiller, register

@register("MYKD")
class MyKD(Distiller):
    defaults = dict(WEIGHT=1.0, LIST=[1, 2], INNER=dict(A="x"), EMPTY=[], T="auto", SIZE=(32, 32))

    def forward_train(self, image, target, **kwargs):
        pass
"""


@pytest.fixture
def plugin(tmp_path):
    yield write(tmp_path, PLUGIN, "my_kd.py")
    distiller_dict.pop("MYKD", None)


def test_a_plugin_brings_its_keys(tmp_path, plugin):
    file = write(tmp_path, "DISTILLER:\n  TYPE: MYKD\n  TEACHER: resnet56\nMYKD:\n  WEIGHT: 2\n")
    cfg = load_cfg(file, ["MYKD.INNER.A", "y", "MYKD.EMPTY", "[a, 1]"], [plugin])
    assert cfg.MYKD.EMPTY == ["a", 1]
    assert changed_keys(saved_config(cfg.dump()), cfg) == []
    assert (cfg.MYKD.WEIGHT, cfg.MYKD.LIST, cfg.MYKD.INNER.A) == (2.0, [1, 2], "y")
    assert distiller_dict["MYKD"].defaults["WEIGHT"] == 1.0
    assert load_cfg(file, [], [plugin]).MYKD.INNER.A == "x"


def test_a_hand_written_node_that_contradicts_the_class_names_both_places(monkeypatch, plugin):
    from yacs.config import CfgNode

    by_hand = defaults.CFG.clone()
    by_hand.MYKD = CfgNode(dict(WEIGHT=1.0, LIST=[1, 2], INNER=dict(A="x"), EMPTY=[], T="auto", SIZE=(32, 32)))
    monkeypatch.setattr(defaults, "CFG", by_hand)
    assert load_cfg(plugins=[plugin]).MYKD.WEIGHT == 1.0
    by_hand.MYKD.WEIGHT = 3.0
    with pytest.raises(UserError, match=r"CFG.MYKD .*engine/cfg.py but .*MyKD in .*my_kd.py"):
        load_cfg(plugins=[plugin])


def test_the_four_published_steps(monkeypatch):
    """A class, an entry of the dictionary, a node by hand, a YAML."""
    from yacs.config import CfgNode

    class MyDistiller(Distiller):
        pass

    by_hand = defaults.CFG.clone()
    by_hand.MyDistiller = CfgNode()
    by_hand.MyDistiller.hyper1 = 1.0
    monkeypatch.setattr(defaults, "CFG", by_hand)
    monkeypatch.setitem(distiller_dict, "MyDistiller", MyDistiller)
    cfg = load_cfg(opts=["DISTILLER.TYPE", "MyDistiller", "MyDistiller.hyper1", "2"])
    assert cfg.MyDistiller.hyper1 == 2.0


def test_a_missing_plugin_is_named():
    with pytest.raises(UserError, match="--plugin nowhere.py: no such Python file"):
        load_cfg(plugins=["nowhere.py"])


def test_what_is_saved_is_read_back(tmp_path):
    cfg = load_cfg(opts=["SOLVER.LR", "0.3", "SOLVER.LR_DECAY_STAGES", "[]"])
    assert load_cfg(write(tmp_path, cfg.dump())) == cfg
    assert yaml.safe_load(cfg.dump())["SOLVER"]["LR"] == 0.3


def test_every_key_has_a_comment():
    lines = Path(defaults.__file__).read_text().splitlines()
    bare = [line for line in lines if re.match(r"CFG\.\S+ = ", line) and "CfgNode" not in line and "  # " not in line]
    assert bare == []


def test_loggers_and_plotting_are_not_imported_at_the_start():
    heavy = {"wandb", "tensorboardX", "matplotlib", "sklearn", "torchvision"}
    code = f"import sys, edkd.engine.run, edkd.engine.report; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
