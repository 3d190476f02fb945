"""mdistiller's YAML files, and EDKD's, load as they were published.

Their content is stated here in tables, from the repositories megvii-research/mdistiller and EDKD.
The files of a method that is not registered are skipped.
"""

import pytest
import yaml

from edkd.distillers import method_names
from edkd.engine.config.compare import flatten
from edkd.engine.config.load import load_config
from edkd.engine.update import PUBLISHED_NAMES
from edkd.engine.updates import find_update
from edkd.errors import UserError

# The blocks that the files share.

CIFAR_SOLVER = {
    "BATCH_SIZE": 64,
    "EPOCHS": 240,
    "LR": 0.05,
    "LR_DECAY_STAGES": [150, 180, 210],
    "LR_DECAY_RATE": 0.1,
    "WEIGHT_DECAY": 0.0005,
    "MOMENTUM": 0.9,
    "TYPE": "SGD",
}
IMAGENET_SOLVER = CIFAR_SOLVER | {
    "BATCH_SIZE": 512,
    "EPOCHS": 100,
    "LR": 0.2,
    "LR_DECAY_STAGES": [30, 60, 90],
    "WEIGHT_DECAY": 0.0001,
}
TINY_SOLVER = CIFAR_SOLVER | {
    "BATCH_SIZE": 256,
    "EPOCHS": 200,
    "LR": 0.2,
    "LR_DECAY_STAGES": [60, 120, 160],
}
IMAGENET = {
    "DATASET": {"TYPE": "imagenet", "NUM_WORKERS": 32, "TEST": {"BATCH_SIZE": 128}},
    "LOG": {"TENSORBOARD_FREQ": 50, "SAVE_CHECKPOINT_FREQ": 10},
}
TINY = {"DATASET": {"TYPE": "tiny_imagenet", "NUM_WORKERS": 16}}

R32X4 = ("resnet32x4", "resnet8x4")
R34 = ("ResNet34", "ResNet18")
R50 = ("ResNet50", "MobileNetV1")
LIGHT = ("ShuffleV1", "ShuffleV2", "MobileNetV2")

HALF = {"TEMPERATURE": 1, "LOSS": {"CE_WEIGHT": 0.5, "KD_WEIGHT": 0.5}}


def experiment(tag, project):
    return {"NAME": "", "TAG": tag, "PROJECT": project}


def content(method, pair, tag, project, solver, **blocks):
    """A file: a nested dictionary."""
    teacher, student = pair
    return {
        "EXPERIMENT": experiment(tag, project),
        "DISTILLER": {"TYPE": method, "TEACHER": teacher, "STUDENT": student},
        "SOLVER": solver,
        **blocks,
    }


def cifar(method, pair, tag, project="cifar100_baselines", more=None, **blocks):
    """A file below configs/cifar100/; the light students have a learning rate of 0.01."""
    solver = CIFAR_SOLVER | ({"LR": 0.01} if pair[1] in LIGHT else {}) | (more or {})
    return content(method, pair, tag, project, solver, **blocks)


def imagenet(method, pair, project="imagenet_baselines", more=None, **blocks):
    """A file below configs/imagenet/."""
    names = "res34,res18" if pair == R34 else "res50,mobilenetv1"
    kind = "kd,dot" if project == "dot_imagenet" else method.lower()
    solver = IMAGENET_SOLVER | (more or {})
    return content(method, pair, f"{kind},{names}", project, solver, **IMAGENET, **blocks)


# configs/cifar100/*.yaml: all for resnet32x4 -> resnet8x4.

ONE_EACH = ("AT", "FITNET", "KD", "KDSVD", "NST", "OFD", "PKT", "RKD", "SP", "VID")
FILES = {
    f"cifar100/{method.lower()}.yaml": cifar(method, R32X4, f"{method.lower()},res32x4,res8x4")
    for method in ONE_EACH
}
FILES |= {
    "cifar100/vanilla.yaml": cifar("NONE", R32X4, "vanilla,res32x4,res8x4"),
    "cifar100/crd.yaml": cifar("CRD", R32X4, "crd,res32x4,res8x4", more={"TRAINER": "crd"}),
    "cifar100/reviewkd.yaml": cifar(
        "REVIEWKD", R32X4, "reviewkd,res32x4,res8x4", REVIEWKD={"REVIEWKD_WEIGHT": 5.0}
    ),
}

# configs/cifar100/dkd/: teacher, student, tag, BETA (None: not in the file).

DKD = {
    "res110_res32": ("resnet110", "resnet32", "res110,res32", 2.0),
    "res32x4_res8x4": ("resnet32x4", "resnet8x4", "res32x4,res8x4", None),
    "res32x4_shuv1": ("resnet32x4", "ShuffleV1", "res32x4,shuv1", None),
    "res32x4_shuv2": ("resnet32x4", "ShuffleV2", "res32x4,shuv2", None),
    "res50_mv2": ("ResNet50", "MobileNetV2", "res50,mv2", None),
    "res56_res20": ("resnet56", "resnet20", "res56,res20", 2.0),
    "vgg13_mv2": ("vgg13", "MobileNetV2", "vgg13,mv2", 6.0),
    "vgg13_vgg8": ("vgg13", "vgg8", "vgg13,vgg8", 6.0),
    "wrn40_2_shuv1": ("wrn_40_2", "ShuffleV1", "wrn_40_2,shuv1", None),
    "wrn40_2_wrn_16_2": ("wrn_40_2", "wrn_16_2", "wrn_40_2,wrn_16_2", 6.0),
    "wrn40_2_wrn_40_1": ("wrn_40_2", "wrn_40_1", "wrn_40_2,wrn_40_1", 6.0),
}
for name, (teacher, student, tag, beta) in DKD.items():
    blocks = {"DKD": {"BETA": beta}} if beta else {}
    FILES[f"cifar100/dkd/{name}.yaml"] = cifar("DKD", (teacher, student), f"dkd,{tag}", **blocks)

# configs/*/dot/: KD with the update rule DOT.

for name, pair in {
    "res32x4_res8x4": R32X4,
    "res32x4_shuv2": ("resnet32x4", "ShuffleV2"),
    "vgg13_vgg8": ("vgg13", "vgg8"),
}.items():
    FILES[f"cifar100/dot/{name}.yaml"] = cifar(
        "KD",
        pair,
        f"kd,dot,{name.replace('_', ',')}",
        "dot_cifar",
        more={"TRAINER": "dot", "DOT": {"DELTA": 0.075}},
    )
for name, student in {"r18_mv2": "MobileNetV2", "r18_shuv2": "ShuffleV2"}.items():
    FILES[f"tiny_imagenet/dot/{name}.yaml"] = content(
        "KD",
        ("ResNet18", student),
        f"kd,dot,{name.replace('_', ',')}",
        "dot_tinyimagenet",
        TINY_SOLVER | {"TRAINER": "dot", "DOT": {"DELTA": 0.075}},
        **TINY,
    )

# configs/imagenet/.

SMALLER = {"BATCH_SIZE": 256, "LR": 0.1}
DOT = {"TRAINER": "dot", "DOT": {"DELTA": 0.09}}
REVIEW = {
    "CE_WEIGHT": 1.0,
    "WARMUP_EPOCHS": 1,
    "SHAPES": [1, 7, 14, 28, 56],
    "OUT_SHAPES": [1, 7, 14, 28, 56],
    "STU_PREACT": True,
}
REVIEW_R34 = REVIEW | {
    "REVIEWKD_WEIGHT": 1.0,
    "IN_CHANNELS": [64, 128, 256, 512, 512],
    "OUT_CHANNELS": [64, 128, 256, 512, 512],
}
REVIEW_R50 = REVIEW | {
    "REVIEWKD_WEIGHT": 8.0,
    "IN_CHANNELS": [128, 256, 512, 1024, 1024],
    "OUT_CHANNELS": [256, 512, 1024, 2048, 2048],
    "MAX_MID_CHANNEL": 256,
}

for folder, pair, beta, dims, review in [
    ("r34_r18", R34, 0.5, (512, 512), REVIEW_R34),
    ("r50_mv1", R50, 2.0, (1024, 2048), REVIEW_R50),
]:
    dkd = {"CE_WEIGHT": 1.0, "BETA": beta, "T": 1.0, "WARMUP": 1}
    feat = {"STUDENT_DIM": dims[0], "TEACHER_DIM": dims[1]}
    FILES |= {
        f"imagenet/{folder}/at.yaml": imagenet("AT", pair),
        f"imagenet/{folder}/kd.yaml": imagenet("KD", pair, KD=HALF),
        f"imagenet/{folder}/dkd.yaml": imagenet("DKD", pair, DKD=dkd),
        f"imagenet/{folder}/dot.yaml": imagenet("KD", pair, "dot_imagenet", DOT, KD=HALF),
        f"imagenet/{folder}/crd.yaml": imagenet(
            "CRD", pair, more=SMALLER | {"TRAINER": "crd"}, CRD={"FEAT": feat}
        ),
        f"imagenet/{folder}/reviewkd.yaml": imagenet(
            "REVIEWKD", pair, more=SMALLER, REVIEWKD=review
        ),
    }
FILES["imagenet/r50_mv1/ofd.yaml"] = imagenet(
    "OFD",
    R50,
    more={"BATCH_SIZE": 128, "LR": 0.05},
    OFD={"LOSS": {"FEAT_WEIGHT": 0.0001}},
)

# EDKD's own: configs/cifar100/edkd/, without a block EDKD; teacher, student and project. A 14th
# cannot be loaded there either.

BASELINES = "cifar100_baselines"
TO_SHUFFLE = "dkd_teachers_shuv1"
EDKD = {
    "res110_res32": ("resnet110", "resnet32", BASELINES),
    "res110_shuv1": ("resnet110", "ShuffleV1", TO_SHUFFLE),
    "res32x4_res8x4": ("resnet32x4", "resnet8x4", ""),
    "res32x4_shuv1": ("resnet32x4", "ShuffleV1", TO_SHUFFLE),
    "res32x4_shuv2": ("resnet32x4", "ShuffleV2", BASELINES),
    "res50_mv2": ("ResNet50", "MobileNetV2", BASELINES),
    "res56_res20": ("resnet56", "resnet20", BASELINES),
    "res56_shuv1": ("resnet56", "ShuffleV1", TO_SHUFFLE),
    "vgg13_mv2": ("vgg13", "MobileNetV2", BASELINES),
    "vgg13_vgg8": ("vgg13", "vgg8", BASELINES),
    "wrn40_2_shuv1": ("wrn_40_2", "ShuffleV1", TO_SHUFFLE),
    "wrn40_2_wrn_16_2": ("wrn_40_2", "wrn_16_2", BASELINES),
    "wrn40_2_wrn_40_1": ("wrn_40_2", "wrn_40_1", BASELINES),
}
for name, (teacher, student, project) in EDKD.items():
    FILES[f"cifar100/edkd/{name}.yaml"] = cifar("EDKD", (teacher, student), f"edkd,{name}", project)

# The nodes of the methods in mdistiller's CFG, with their default values.

LOSS = {"CE_WEIGHT": 1.0}
DEFAULTS = {
    "AT": {"P": 2, "LOSS": LOSS | {"FEAT_WEIGHT": 1000.0}},
    "CRD": {
        "MODE": "exact",
        "FEAT": {"DIM": 128, "STUDENT_DIM": 256, "TEACHER_DIM": 256},
        "LOSS": LOSS | {"FEAT_WEIGHT": 0.8},
        "NCE": {"K": 16384, "MOMENTUM": 0.5, "TEMPERATURE": 0.07},
    },
    "DKD": {"CE_WEIGHT": 1.0, "ALPHA": 1.0, "BETA": 8.0, "T": 4.0, "WARMUP": 20},
    "EDKD": {"CE_WEIGHT": 1.0, "ALPHA": 1.0, "BETA": 10.0, "T": 4.0, "WARMUP": 20},
    "FITNET": {
        "HINT_LAYER": 2,
        "INPUT_SIZE": [32, 32],
        "LOSS": LOSS | {"FEAT_WEIGHT": 100.0},
    },
    "KD": {"TEMPERATURE": 4, "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9}},
    "KDSVD": {"K": 1, "LOSS": LOSS | {"FEAT_WEIGHT": 1.0}},
    "NST": {"LOSS": LOSS | {"FEAT_WEIGHT": 50.0}},
    "OFD": {"LOSS": LOSS | {"FEAT_WEIGHT": 0.001}, "CONNECTOR": {"KERNEL_SIZE": 1}},
    "PKT": {"LOSS": LOSS | {"FEAT_WEIGHT": 30000.0}},
    "REVIEWKD": {
        "CE_WEIGHT": 1.0,
        "REVIEWKD_WEIGHT": 1.0,
        "WARMUP_EPOCHS": 20,
        "SHAPES": [1, 8, 16, 32],
        "OUT_SHAPES": [1, 8, 16, 32],
        "IN_CHANNELS": [64, 128, 256, 256],
        "OUT_CHANNELS": [64, 128, 256, 256],
        "MAX_MID_CHANNEL": 512,
        "STU_PREACT": False,
    },
    "RKD": {
        "DISTANCE_WEIGHT": 25,
        "ANGLE_WEIGHT": 50,
        "LOSS": LOSS | {"FEAT_WEIGHT": 1.0},
        "PDIST": {"EPSILON": 1e-12, "SQUARED": False},
    },
    "SP": {"LOSS": LOSS | {"FEAT_WEIGHT": 3000.0}},
    "VID": {
        "LOSS": LOSS | {"FEAT_WEIGHT": 1.0},
        "EPS": 1e-5,
        "INIT_PRED_VAR": 5.0,
        "INPUT_SIZE": [32, 32],
    },
}


def loaded(values, tmp_path):
    """A file with these values, as `load_config` reads it: full names and values."""
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(values))
    return dict(flatten(load_config(str(path))))


def as_list(value):
    return list(value) if isinstance(value, tuple) else value


def stated(values, prefix=""):
    """Full names and values of a nested dictionary."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from stated(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def skip_unless_registered(method):
    if method not in method_names():
        pytest.skip(f"no method {method}")


def test_all_published_files_are_here():
    kinds = [name.rsplit("/", 1)[0] for name in FILES]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    assert counts == {
        "cifar100": 13,
        "cifar100/dkd": 11,
        "cifar100/dot": 3,
        "tiny_imagenet/dot": 2,
        "imagenet/r34_r18": 6,
        "imagenet/r50_mv1": 7,
        "cifar100/edkd": 13,
    }


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_loads_unchanged(name, tmp_path):
    values = FILES[name]
    skip_unless_registered(values["DISTILLER"]["TYPE"])
    cfg = loaded(values, tmp_path)
    expected = dict(stated(values))
    rule = expected.get("SOLVER.TRAINER", "base")
    expected["SOLVER.TRAINER"] = PUBLISHED_NAMES.get(rule, rule)
    assert {key: as_list(cfg[key]) for key in expected} == expected


def test_a_teacher_that_its_own_code_does_not_know_is_refused(tmp_path):
    """configs/cifar100/edkd/res50_shuv1.yaml names `resnet50`, and means ResNet50."""
    values = cifar("EDKD", ("resnet50", "ShuffleV1"), "edkd,res50,shuv1", TO_SHUFFLE)
    with pytest.raises(UserError, match=r"DISTILLER.TEACHER is 'resnet50', not one of .*ResNet50"):
        loaded(values, tmp_path)


@pytest.mark.parametrize("method", DEFAULTS)
def test_the_published_keys_of_a_method_are_accepted(method, tmp_path):
    skip_unless_registered(method)
    values = {"DISTILLER": {"TYPE": method, "TEACHER": "resnet56"}, method: DEFAULTS[method]}
    cfg = loaded(values, tmp_path)
    assert {key: as_list(cfg[key]) for key, _ in stated(values)} == dict(stated(values))


@pytest.mark.parametrize(("name", "same"), [("crd", "base"), ("crd_dot", "dot")])
def test_the_published_names_of_update_rules(name, same):
    """CRD needed a trainer of its own there; here its order of images is any other's."""
    cfg = load_config(opts=["SOLVER.TRAINER", name, "DISTILLER.TYPE", "KD"])
    assert find_update(cfg.SOLVER.TRAINER) is find_update(same)


def test_an_unknown_key_in_a_published_file_is_an_error(tmp_path):
    values = FILES["cifar100/kd.yaml"] | {"KD": {"TEMPRATURE": 4}}
    with pytest.raises(UserError, match=r"KD.TEMPRATURE.*did you mean 'KD.TEMPERATURE'"):
        loaded(values, tmp_path)
