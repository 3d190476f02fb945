"""The files in configs/: each loads, has a header, and is named as its content."""

import re
from pathlib import Path

import pytest

from edkd.distillers import find_method
from edkd.engine.config.compare import flatten
from edkd.engine.config.load import load_config
from edkd.engine.config.strict_yaml import read_chain
from edkd.registry import MODELS

CONFIGS = Path(__file__).parents[2] / "configs"
OTHERS = [CONFIGS / name for name in ("suites", "tune", "wandb")]
"""Folders of sweeps and studies, which are no configurations."""
FILES = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if path.name != "_base_.yaml" and path.parent not in OTHERS
)
OWN = [path for path in FILES if path.parent.name == "folder"]
"""For the user's own images: the networks are named on the command line."""
PUBLISHED = [path for path in FILES if path not in OWN]
RECIPES = "recipes"
"""A folder of training recipes, which are named as their papers name them."""
CONTROLS = "controls"
"""A folder of runs without a teacher, or without its knowledge of an image."""
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
NEWER_PAIRS = [
    "res32x4_shuv2",
    "res32x4_wrn_16_2",
    "res32x4_wrn_40_2",
    "wrn40_2_res8x4",
    "wrn40_2_mv2",
    "vgg13_mv2",
    "res50_mv2",
]
"""Of different families, in papers since 2024."""
SAME_FAMILY = [
    "wrn40_2_wrn_16_2",
    "wrn40_2_wrn_40_1",
    "res56_res20",
    "res110_res20",
    "res110_res32",
    "res32x4_res8x4",
    "vgg13_vgg8",
]
DKD_BETA = dict(res56_res20=2, res110_res20=2, res110_res32=2, vgg13_vgg8=6, vgg13_mv2=6)
DKD_BETA |= dict(wrn40_2_wrn_16_2=6, wrn40_2_wrn_40_1=6)


@pytest.fixture(scope="module")
def loaded():
    return {path: load_config(str(path)) for path in FILES}


def relative(path):
    return path.relative_to(CONFIGS)


def test_every_file_is_based_on_the_one_of_its_data_set():
    assert len(FILES) >= 113
    for path in FILES:
        line = next(line for line in path.read_text().splitlines() if not line.startswith("#"))
        base = (path.parent / line.removeprefix("_BASE_: ")).resolve()
        assert base == CONFIGS / relative(path).parts[0] / "_base_.yaml", path


def test_every_file_belongs_to_its_folder(loaded):
    """configs/<data set>/<method>/<pair>.yaml; mdistiller publishes some under other paths."""
    for path, cfg in loaded.items():
        folder = relative(path).parts[0]
        assert folder == cfg.DATASET.TYPE, path
        if path.parent.name == RECIPES:
            continue
        method = "vanilla" if cfg.DISTILLER.TYPE == "NONE" else cfg.DISTILLER.TYPE.lower()
        if cfg.SOLVER.TRAINER != "base":
            method = cfg.SOLVER.TRAINER
        if path.stem == "finetune":  # a network alone, too
            method = "finetune"
        methods = {method, *method.split("+")}  # a combination is in the folder of one of them
        places = {path.parent.name, path.stem, *path.stem.split("_")}
        if path.parent.name != CONTROLS:
            assert methods & places, path


def test_every_tag_is_the_method_and_the_pair(loaded):
    for path in PUBLISHED:
        cfg = loaded[path]
        words = cfg.EXPERIMENT.TAG.split(",")
        if cfg.SOLVER.TRAINER in words:  # as "kd,dot,res32x4,res8x4"
            words = words[words.index(cfg.SOLVER.TRAINER) :]
        method, *networks = words
        folder, _, form = method.partition("_")  # lskd_kd is lskd/kd_<pair>.yaml
        assert path.parent.name in (method, folder) or method == path.stem, path

        pair = path.stem.removeprefix(f"{form}_")
        if path.parent.name == RECIPES:
            continue
        if path.stem == method and path.parent.name == "cifar100":  # the paths of mdistiller
            twin = path.parent / method / f"{'_'.join(networks)}.yaml"
            assert loaded[twin] == cfg
            pair = twin.stem
        elif path.stem == method:
            pair = path.parent.name
        assert "".join(networks).replace("_", "") == pair.replace("_", ""), path


def test_every_header_states_the_published_accuracy(loaded):
    for path in PUBLISHED:
        cfg = loaded[path]
        first, second, *_ = path.read_text().splitlines()
        names = find_method(cfg.DISTILLER.TYPE).student_names(cfg)
        student = names[-1].replace("ResNet18", "ResNet-?18")
        assert re.match(f"# .*{student}.*, [-a-zA-Z0-9]+", first), path
        assert re.match(r"# Published top-1: (\d\d\.\d\d \(.*\)|none.*)$", second), path


def test_no_line_is_long():
    for path in CONFIGS.rglob("*.yaml"):
        assert max(map(len, path.read_text().splitlines())) <= 100, path


def test_no_file_repeats_its_base():
    for path in FILES:
        (_, base), (_, own) = read_chain(str(path))
        repeated = leaves(base) & leaves(own)
        assert repeated == set(), path


def leaves(content, prefix=""):
    """The values of a file that was read, as a set of (name, text)."""
    found = set()
    for key, value in content.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found.add((f"{prefix}{key}", str(value)))
    return found


@pytest.mark.parametrize("method", ["kd", "dkd", "edkd"])
def test_every_published_pair_has_its_file(loaded, method):
    for pair in {*PAIRS, *NEWER_PAIRS}:
        cfg = loaded[CONFIGS / "cifar100" / method / f"{pair}.yaml"]
        light = cfg.DISTILLER.STUDENT.startswith(("Shuffle", "Mobile"))
        assert (method.upper(), 0.01 if light else 0.05) == (cfg.DISTILLER.TYPE, cfg.SOLVER.LR)
        solver = cfg.SOLVER
        assert (solver.EPOCHS, solver.WEIGHT_DECAY, solver.BATCH_SIZE) == (240, 5e-4, 64)
        beta = DKD_BETA.get(pair, 8) if method == "dkd" else 8
        assert beta == cfg.DKD.BETA


@pytest.mark.parametrize("method", ["KD", "DKD"])
def test_every_pair_has_its_file_with_standardised_logits(loaded, method):
    """The published weight w: 0.1 CE + w KD, or CE + w DKD."""
    for pair in SAME_FAMILY + NEWER_PAIRS:
        cfg = loaded[CONFIGS / "cifar100" / "lskd" / f"{method.lower()}_{pair}.yaml"]
        assert cfg.DISTILLER.LSKD
        assert method == cfg.DISTILLER.TYPE
        node = cfg[method]
        if method == "KD":
            assert node.LOSS.CE_WEIGHT == 0.1
            assert node.LOSS.KD_WEIGHT in (1, 9, 12)
        else:
            assert node.BETA / node.ALPHA in (2, 8)


@pytest.mark.parametrize("dataset", ["cifar100", "tiny_imagenet", "imagenet"])
def test_every_published_model_can_be_trained_alone(loaded, dataset):
    folder = CONFIGS / dataset / "vanilla"
    for path in folder.glob("*.yaml"):
        cfg = loaded[path]
        assert (dataset, "NONE", path.stem) == (
            cfg.DATASET.TYPE,
            cfg.DISTILLER.TYPE,
            cfg.DISTILLER.STUDENT,
        )
    family = "cifar" if dataset == "cifar100" else dataset
    shipped = {path.stem for path in folder.glob("*.yaml")}
    assert shipped <= set(MODELS.names(family))
    assert len(shipped) >= {"cifar100": 23, "tiny_imagenet": 3, "imagenet": 5}[dataset]


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
        ("imagenet/r34_r18/edkd.yaml", "EDKD.WARMUP", 1),
        ("imagenet/r50_mv1/kd.yaml", "KD.TEMPERATURE", 1.0),
        ("imagenet/r50_mv1/dkd.yaml", "SOLVER.BATCH_SIZE", 512),
        ("cifar100/lskd/kd_res110_res20.yaml", "KD.TEMPERATURE", 4.0),
        ("cifar100/lskd/kd_res50_mv2.yaml", "KD.LOSS.KD_WEIGHT", 1.0),
        ("cifar100/lskd/dkd_res56_res20.yaml", "DKD.BETA", 36.0),
        ("cifar100/lskd/dkd_res32x4_res8x4.yaml", "DKD.BETA", 72.0),
        ("cifar100/normkd/dkd_res56_res20.yaml", "NORMKD.ALPHA", 7.0),
        ("cifar100/rld/res56_res20.yaml", "RLD.ALPHA_T", 4.0),
        ("cifar100/dist/res32x4_res8x4.yaml", "DIST.KD_WEIGHT", 2.0),
        ("cifar100/sdd/res32x4_res8x4.yaml", "SDD.WARMUP", 0),
        ("cifar100/controls/doubled_res20.yaml", "NONE.CE_WEIGHT", 2.0),
        ("cifar100/controls/shuffled_res56_res20.yaml", "DISTILLER.SHUFFLE_TEACHER", True),
        ("imagenet/r34_r18/eakd_kd.yaml", "DISTILLER.EAKD_TEMPERATURE", 2.0),
        ("imagenet/r50_mv1/nkd.yaml", "SOLVER.BATCH_SIZE", 256),
        ("imagenet/r50_mv1/normkd_dkd.yaml", "NORMKD.TEMPERATURE_NORM", 0.75),
        ("cifar100/mlkd/res32x4_res8x4.yaml", "SOLVER.LR", 0.025),
        ("cifar100/mlkd/res32x4_shuv2.yaml", "SOLVER.EPOCHS", 960),
        ("cifar100/mlkd/wrn40_2_mv2.yaml", "SOLVER.LR", 0.005),
        ("cifar100/lskd/mlkd_vgg13_vgg8.yaml", "MLKD.LOSS.KD_WEIGHT", 6.0),
        ("cifar100/deepkd/crld_res32x4_res8x4.yaml", "SOLVER.DEEPKD.BETA", 2.0),
        ("imagenet/r34_r18/mlkd.yaml", "SOLVER.LR", 0.1),
        ("imagenet/r50_mv1/crld.yaml", "CRLD.CE_WEIGHT", 2.0),
        ("cifar10/vanilla/ResNet18.yaml", "SOLVER.TYPE", "Adam"),
        ("cifar10/vanilla/ResNet18.yaml", "SOLVER.SCHEDULE", "cosine"),
        ("cifar10/kd/ResNet18_res20.yaml", "KD.TEMPERATURE", 20.0),
        ("cifar10/kd/ResNet18_res20.yaml", "KD.LOSS.CE_WEIGHT", 0.9),
        ("cifar10/kd/ResNet18_res20.yaml", "DISTILLER.TEACHER", "ResNet18"),
        ("digits/edkd/res20_res8.yaml", "EDKD.WARMUP", 2),
        ("cifar100/dot/res32x4_res8x4.yaml", "SOLVER.DOT.DELTA", 0.075),
        ("imagenet/r34_r18/dot.yaml", "SOLVER.DOT.DELTA", 0.09),
        ("tiny_imagenet/kd/r18_mv2.yaml", "SOLVER.LR_DECAY_STAGES", [60, 120, 160]),
    ],
)
def test_published_values(loaded, file, key, value):
    assert dict(flatten(loaded[CONFIGS / file]))[key] == value


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_own_images_need_a_folder_and_networks_alone(path, tmp_path):
    first, second, *_ = path.read_text().splitlines()
    method = find_method(load_config(str(path)).DISTILLER.TYPE)
    keys = ["DATASET.ROOT", "DISTILLER.TEACHER"][: 1 + method.needs_teacher]
    assert first.endswith(f"give {', '.join(keys)} and DISTILLER.STUDENT"), path
    assert second == "# Published top-1: none"

    cfg = load_config(str(path), ["DATASET.ROOT", str(tmp_path), "DISTILLER.STUDENT", "ResNet18"])
    assert (cfg.DATASET.TYPE, cfg.EXPERIMENT.PROJECT) == ("folder", "folder")
    assert path.stem == cfg.EXPERIMENT.TAG
    warmups = [cfg.SOLVER.WARMUP_EPOCHS]
    warmups += [cfg[cfg.DISTILLER.TYPE].WARMUP] if path.stem in ("dkd", "edkd") else []
    assert max(warmups) < cfg.SOLVER.EPOCHS / 2
