"""Loading: published files merge; mistakes are one line that names key and file."""

import subprocess
import sys

import pytest
import yaml

from edkd.engine.config.command_line import pairs
from edkd.engine.config.compare import flatten
from edkd.engine.config.load import load_config
from edkd.errors import UserError


def write(tmp_path, text, name="x.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def values(*opts, file=""):
    return dict(flatten(load_config(file, opts)))


PUBLISHED = """
EXPERIMENT:
  NAME: ""
  TAG: "dkd,res32x4,res8x4"
  PROJECT: "cifar100_baselines"
DISTILLER:
  TYPE: "DKD"
  TEACHER: "resnet32x4"
  STUDENT: "resnet8x4"
SOLVER:
  BATCH_SIZE: 64
  EPOCHS: 240
  LR: 0.05
  LR_DECAY_STAGES: [150, 180, 210]
  LR_DECAY_RATE: 0.1
  WEIGHT_DECAY: 0.0005
  MOMENTUM: 0.9
  TYPE: "SGD"
  TRAINER: "crd"
DKD:
  CE_WEIGHT: 1.0
  ALPHA: 1.0
  BETA: 8.0
  T: 4.0
  WARMUP: 20
"""


def test_a_published_file_merges(tmp_path):
    cfg = load_config(write(tmp_path, PUBLISHED))
    written = {
        f"{group}.{key}": value
        for group, node in yaml.safe_load(PUBLISHED).items()
        for key, value in node.items()
    }
    merged = dict(flatten(cfg))
    assert {key: merged[key] for key in written} == written | {"SOLVER.TRAINER": "base"}
    assert cfg.is_frozen()


def test_published_defaults():
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
    merged = values()
    assert {key: merged[key] for key in published} == published


READ = [
    ("SOLVER.LR", "1", 1.0),
    ("SOLVER.LR", "1e-3", 1e-3),
    ("SOLVER.SEED", "010", 10),
    ("SOLVER.BATCH_SIZE", "064", 64),
    ("SOLVER.LR_DECAY_STAGES", "[7,9,11]", [7, 9, 11]),
    ("SOLVER.LR_DECAY_STAGES", "[]", []),
    ("SOLVER.AMP", "off", "off"),
    ("EXPERIMENT.NAME", "007", "007"),
    ("EXPERIMENT.NAME", "1.10", "1.10"),
    ("EXPERIMENT.TAG", "no", "no"),
    ("EXPERIMENT.TAG", "12:30", "12:30"),
    ("EXPERIMENT.TAG", "2024-02-30", "2024-02-30"),
    ("EXPERIMENT.TAG", "0x10", "0x10"),
    ("LOG.WANDB", "False", False),
    ("LOG.WANDB", "no", False),
    ("DKD.WARMUP", "0", 0),
    ("DISTILLER.TEACHER", "[resnet56, ResNet50]", ["resnet56", "ResNet50"]),
    ("DISTILLER.TEACHER_CKPT", "[a.pth, 007]", ["a.pth", "007"]),
    ("DISTILLER.TEACHER_WEIGHTS", "[1, 0.5]", [1.0, 0.5]),
]


@pytest.mark.parametrize(("key", "text", "value"), READ)
def test_values_in_a_file_and_on_the_command_line(tmp_path, key, text, value):
    group, name = key.split(".")
    file = write(tmp_path, f"{group}:\n  {name}: {text}\n")
    for result in (values(key, text), values(f"{key}={text}"), values(file=file)):
        assert result[key] == value
        assert type(result[key]) is type(value)


@pytest.mark.parametrize(
    ("opts", "key", "value"),
    [
        (["SOLVER.LR_DECAY_STAGES", "(7, 9)"], "SOLVER.LR_DECAY_STAGES", [7, 9]),
        (["EXPERIMENT.TAG", "a: b, c"], "EXPERIMENT.TAG", "a: b, c"),
        (["EXPERIMENT.TAG", "'quoted'"], "EXPERIMENT.TAG", "quoted"),
        (["EXPERIMENT.TAG", "null"], "EXPERIMENT.TAG", "null"),
        (["EXPERIMENT.NAME", ""], "EXPERIMENT.NAME", ""),
        (["EXPERIMENT.NAME", "a=b"], "EXPERIMENT.NAME", "a=b"),
        (["EXPERIMENT.NAME=a=b"], "EXPERIMENT.NAME", "a=b"),
        (["DISTILLER.TYPE", "okddip"], "DISTILLER.TYPE", "OKDDip"),
        (["DISTILLER.TYPE", "kd+dkd"], "DISTILLER.TYPE", "KD+DKD"),
        (["SOLVER.TRAINER", "crd_dot"], "SOLVER.TRAINER", "dot"),
        (["SOLVER.TRAINER", "DOT"], "SOLVER.TRAINER", "dot"),
    ],
)
def test_the_command_line_is_read_as_meant(opts, key, value):
    assert values(*opts)[key] == value


def test_empty_places_in_a_file(tmp_path):
    file = write(tmp_path, "EXPERIMENT:\n  NAME:\nDISTILLER: {TEACHER_CKPT: null}\nLOG:\n")
    cfg = load_config(file)
    assert (cfg.EXPERIMENT.NAME, cfg.DISTILLER.TEACHER_CKPT) == ("", "")
    for text in ("", "# nothing\n", "~"):
        with pytest.raises(UserError, match="the file is empty"):
            load_config(write(tmp_path, text))


def test_pairs():
    assert pairs(["A.B", "1", "C.D=2", "E.F", "x=y", "G.H="]) == [
        ("A.B", "1"),
        ("C.D", "2"),
        ("E.F", "x=y"),
        ("G.H", ""),
    ]
    assert pairs([]) == []


def test_later_sources_win(tmp_path):
    write(tmp_path, "SOLVER: {LR: 1, EPOCHS: 7, SEED: 5}\n", "base.yaml")
    file = write(tmp_path, "_BASE_: base.yaml\nSOLVER: {LR: 2, EPOCHS: 8}\n")
    solver = load_config(file, ["SOLVER.LR", "3"]).SOLVER
    assert (solver.LR, solver.EPOCHS, solver.SEED) == (3.0, 8, 5)


def test_a_mistake_in_a_base_names_the_base(tmp_path):
    write(tmp_path, "SOLVER: {LRR: 1}\n", "base.yaml")
    with pytest.raises(UserError, match=r"SOLVER.LRR \(.*base.yaml\), did you mean 'SOLVER.LR'"):
        load_config(write(tmp_path, "_BASE_: base.yaml\n"))


BAD_OPTIONS = [
    (["SOLVER.LRR", "1"], r"unknown key SOLVER.LRR \(command line\), did you mean 'SOLVER.LR'"),
    (["SLOVER.LR", "1"], "unknown key SLOVER.*did you mean 'SOLVER'"),
    (["LR", "1"], "unknown key LR .*did you mean 'SOLVER.LR'"),
    (["SOLVER.T", "1"], "unknown key SOLVER.T"),
    (["", "1"], "the value '1' has no key"),
    (["SOLVER..LR", "1"], r"unknown key SOLVER. \(command line\)"),
    (["SOLVER.LR", "1", "SOLVER.EPOCHS"], "'SOLVER.EPOCHS' has no value"),
    (["a/kd.yaml"], "a/kd.yaml is not a key; .* --cfg a/kd.yaml"),
    (["SOLVER.LR", "fast"], "SOLVER.LR.*'fast' is not of type float"),
    (["SOLVER.LR", ""], "SOLVER.LR.*None is not of type float"),
    (["SOLVER.LR=1:30"], "SOLVER.LR.*'1:30' is not of type float"),
    (["SOLVER.EPOCHS", "1.5"], "SOLVER.EPOCHS.*not of type int"),
    (["SOLVER.EPOCHS", "True"], "SOLVER.EPOCHS.*not of type int"),
    (["SOLVER.EPOCHS", "-1"], "SOLVER.EPOCHS is -1, but must be at least 1"),
    (["SOLVER.LR", ".nan"], "SOLVER.LR.*nan is not a finite number"),
    (["SOLVER.LR", ".inf"], "SOLVER.LR.*inf is not a finite number"),
    (["SOLVER.LR", "1e999"], "SOLVER.LR.*inf is not a finite number"),
    (["SOLVER.LR_DECAY_STAGES", "[1, x]"], "SOLVER.LR_DECAY_STAGES.*'x' is not of type int"),
    (["SOLVER.LR_DECAY_STAGES", "[-1]"], "SOLVER.LR_DECAY_STAGES.*at least 0"),
    (["SOLVER.LR_DECAY_STAGES", "150"], "SOLVER.LR_DECAY_STAGES.*150 is not of type list"),
    (["SOLVER.LR_DECAY_STAGES", "[1"], "SOLVER.LR_DECAY_STAGES.*cannot read the value"),
    (["SOLVER", "1"], "SOLVER .*is a group of keys"),
    (["SOLVER.TYPE", "SDG"], "SOLVER.TYPE is 'SDG', not one of SGD.*did you mean 'SGD'"),
    (["SOLVER.AMP", "fp32"], "SOLVER.AMP is 'fp32', not one of"),
    (["SOLVER.BETAS", "[0.9]"], "SOLVER.BETAS.*two numbers"),
    (["SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0"], "SOLVER.NESTEROV needs"),
    (["SOLVER.NESTEROV", "True", "SOLVER.TYPE", "AdamW"], "NESTEROV has no effect on .* AdamW"),
    (["SOLVER.CUDA_GRAPH", "True", "SOLVER.AMP", "fp16"], "SOLVER.CUDA_GRAPH cannot"),
    (["SOLVER.TRAINER", "bass"], "SOLVER.TRAINER.*did you mean 'base'"),
    (["DATASET.TYPE", "cifar10O"], "DATASET.TYPE.*did you mean 'cifar10"),
    (["DATASET.TYPE", "custom"], "DATASET.TYPE is 'custom', not one of"),
    (["DATASET.VAL_SPLIT", "1.0"], "DATASET.VAL_SPLIT.*below 1"),
    (
        ["DATASET.ROOT", "~nobody-has-this-name/data"],
        "DATASET.ROOT is '~nobody-has-this-name/data'",
    ),
    (["DISTILLER.TYPE", "EDDK"], "DISTILLER.TYPE is 'EDDK'.*did you mean 'EDKD'"),
    (["DISTILLER.TYPE", "KD+DKKD"], "DISTILLER.TYPE is 'DKKD'.*did you mean 'DKD'"),
    (["DISTILLER.TYPE", "KD+DML"], "DISTILLER.TYPE.*DML.*cannot be combined"),
    (["DISTILLER.STUDENT", "resnt20"], "DISTILLER.STUDENT.*did you mean 'resnet20'"),
    (["DISTILLER.STUDENT", "[resnet20]"], r"DISTILLER.STUDENT is '\[resnet20\]'"),
    (["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "resnet5"], "DISTILLER.TEACHER is 'resnet5'"),
    (["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "[vgg13, x]"], "DISTILLER.TEACHER is 'x'"),
    (["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "[]"], "DISTILLER.TEACHER is empty"),
    (["DISTILLER.TYPE=KD", "DISTILLER.TEACHER_WEIGHTS=[1, 2]"], "TEACHER_WEIGHTS has 2 numbers"),
    (["DISTILLER.TEACHER_WEIGHTS", "[-1]"], "DISTILLER.TEACHER_WEIGHTS .*at least 0"),
    (["DISTILLER.TEACHER_WEIGHTS", "[a]"], "DISTILLER.TEACHER_WEIGHTS .*'a' is not of type float"),
    (["SOLVER.LR", "2020-13-45"], "SOLVER.LR"),
    (["SOLVER.LR", "1" + 400 * "0"], "SOLVER.LR"),
    (["SOLVER.EPOCHS", "1" + 5000 * "0"], "SOLVER.EPOCHS"),
    (["SOLVER.EPOCHS", "!!int abc"], "SOLVER.EPOCHS.*cannot read the value"),
    (["EDKD.FORM", "papre"], "EDKD.FORM is 'papre', not one of paper.*did you mean 'paper'"),
    (["KD.LOSS.CE_WEIGHT", "-1"], "KD.LOSS.CE_WEIGHT is -1.0, but must be at least 0"),
    (["KD.TEMPERATURE", "0"], "KD.TEMPERATURE is 0.0"),
    (["DKD.WARMUP", "-2"], "DKD.WARMUP is -2"),
    (["EXPERIMENT.NAME", "a\0b"], "EXPERIMENT.NAME.*contains a character"),
    (["DISTILLER.TYPE", "DML", "DML.NUM_STUDENTS", "1"], "DML.NUM_STUDENTS is 1"),
    (["DISTILLER.TYPE=DML", "DML.STUDENTS=[resnet8]"], "DML takes 2 students or more"),
    (["DISTILLER.TYPE=DML", "DML.STUDENTS=[vgg8, vgg7]"], "DML.STUDENTS is 'vgg7'.*'vgg8'"),
    (
        ["DISTILLER.TYPE=DML", "DML.STUDENTS=[vgg8, vgg8]", "DISTILLER.STUDENT=vgg8"],
        "DISTILLER.STUDENT has no effect beside DML.STUDENTS",
    ),
]


@pytest.mark.parametrize(("opts", "message"), BAD_OPTIONS)
def test_bad_options_are_named(opts, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(opts=opts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["SEMCKD.X", "SOLVER.LAYER_DECAY", "DATASET.COLOR_JITTER", "SOLVER.GRADIENT_PENALTY"]
)
def test_nothing_is_suggested_for_a_key_that_is_close_to_none(key):
    with pytest.raises(UserError) as caught:
        load_config(opts=[key, "1"])
    assert "did you mean" not in str(caught.value)
    assert "known here: " in str(caught.value)


LAUGHS = "\n".join(f"  x{i}: &x{i} [{', '.join(9 * [f'*x{i - 1}'])}]" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER:\n  LR: 0.1\n  LR: 0.2\n", "not valid YAML: the key LR is written twice.*line 3"),
        ("SOLVER:\n\tLR: 0.1\n", "not valid YAML"),
        ("SOLVER:\n  LR: .nan\n", "SOLVER.LR .*nan is not a finite number"),
        ("SOLVER:\n  LR: 0,1\n", "SOLVER.LR .*'0,1' is not of type float"),
        ("SOLVER:\n  LR: '0.1'\n", "SOLVER.LR .*'0.1' is not of type float"),
        ("SOLVER:\n  LR: {START: 0.1}\n", "SOLVER.LR .*is not of type float"),
        ("SOLVER:\n  LR: *base\n", "not valid YAML"),
        ("SOLVER:\n  LR: 0x" + 5000 * "f", "SOLVER.LR .*x.yaml"),
        ("SOLVER:\n  EPOCHS: 240.0\n", "SOLVER.EPOCHS .*not of type int"),
        ("SOLVER:\n  EPOCHS:\n", "SOLVER.EPOCHS .*None is not of type int"),
        ("SOLVER:\n  NESTEROV: 1\n", "SOLVER.NESTEROV .*not of type bool"),
        ("SOLVER:\n  EPOCS: 3\n", "unknown key SOLVER.EPOCS .*did you mean 'SOLVER.EPOCHS'"),
        ("SOLVER:\nLR: 0.1\n", "unknown key LR"),
        ("SOLVER:\n  LR 0.1\n", "SOLVER .*is a group of keys"),
        ("solver:\n  LR: 0.1\n", "did you mean 'SOLVER'"),
        ("KD:\n  _BASE_: x.yaml\n", "unknown key KD._BASE_"),
        ("1: 2\n", "unknown key 1 "),
        ("SOLVER: 3\n", "is a group of keys"),
        ("DATASET:\n  TYPE: [digits]\n", r"DATASET.TYPE .*\['digits'\] is not of type str"),
        ("DISTILLER:\n  TEACHER: [[a]]\n", "DISTILLER.TEACHER .*is not of type str"),
        ('EXPERIMENT:\n  TAG: "\\uD800"\n', "EXPERIMENT.TAG"),
        ("a: !!python/object/apply:os.system ['touch executed']\n", "not valid YAML"),
        (f"SOLVER:\n  LR_DECAY_STAGES: &x0 [1]\n{LAUGHS}\n", "unknown key SOLVER.x1"),
        (f"KD:\n  TEMPERATURE:\n  - &x0 1\n{LAUGHS.replace('  x', '  - x')}", "KD.TEMPERATURE"),
        ("<<<<<<< HEAD\nSOLVER:\n=======\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)
    assert file in str(caught.value)


def test_other_files_are_not_read(tmp_path):
    executed = tmp_path / "executed"
    for name in ("x.py", "x.txt", "x"):
        with pytest.raises(UserError, match=r"a configuration is a .yaml file"):
            load_config(write(tmp_path, f"open({str(executed)!r}, 'w')", name))
    assert not executed.exists()

    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "utf16.yaml").write_bytes("SOLVER:\n".encode("utf-16"))
    for name in ("folder.yaml", "utf16.yaml"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            load_config(str(tmp_path / name))


def test_a_missing_file_suggests_the_nearest(tmp_path):
    write(tmp_path, "", "res56_res20.yaml")
    with pytest.raises(UserError, match=r"no such file, did you mean '.*/res56_res20.yaml'"):
        load_config(str(tmp_path / "res56_rse20.yaml"))
    with pytest.raises(UserError, match="nowhere/x.yaml: no such file"):
        load_config("nowhere/x.yaml")


def test_the_callers_own_networks_are_not_looked_up():
    opts = ["DATASET.TYPE=custom", "DISTILLER.TYPE=KD", "DISTILLER.STUDENT=Mine"]
    opts.append("DISTILLER.TEACHER=[Yours, Theirs]")
    networks = {"student": ["Mine"], "teacher": ["Yours", "Theirs"]}
    assert load_config(opts=opts, networks=networks).DISTILLER.TEACHER == ["Yours", "Theirs"]
    with pytest.raises(UserError, match="DISTILLER.TEACHER_WEIGHTS has 1 numbers"):
        load_config(opts=[*opts, "DISTILLER.TEACHER_WEIGHTS=[1]"], networks=networks)


def test_a_saved_configuration_is_read_back(tmp_path):
    opts = ["SOLVER.LR", "0.3", "SOLVER.LR_DECAY_STAGES", "[]", "EXPERIMENT.TAG", "007"]
    cfg = load_config(opts=[*opts, "DISTILLER.TEACHER", "[vgg13, 1e-4]"])
    assert load_config(write(tmp_path, cfg.dump())) == cfg
    assert yaml.safe_load(cfg.dump())["EXPERIMENT"]["TAG"] == "007"


def modules_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_loggers_and_plotting_are_not_imported_at_the_start():
    heavy = {"wandb", "tensorboardX", "matplotlib", "sklearn", "torchvision"}
    found = modules_after("import edkd.engine.run, edkd.engine.config.load")
    assert "torch" in found
    assert not heavy & found


def test_the_table_imports_its_owners_only_when_it_is_read():
    parts = ("shared", "strict_yaml", "table", "plugins")
    assert "torch" not in modules_after(f"from edkd.engine.config import {', '.join(parts)}")
