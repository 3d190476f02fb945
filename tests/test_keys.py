"""R12: no key is dead. Each one is changed, and something that a user can see changes with it.

The hyper-parameters of methods are changed in tests/distillers/test_contract.py.
"""

import hashlib
import json
import sys

import pytest
import torch
from PIL import Image

from edkd.dataset import get_dataset
from edkd.distillers import method_names
from edkd.engine.config.load import load_config
from edkd.engine.config.table import table
from edkd.errors import UserError
from tests.conftest import PLUGIN
from tests.small import TinyNet

KD = {"DISTILLER.TYPE": "KD"}
TWO_TEACHERS = {
    **KD,
    "DISTILLER.TEACHER": "[wide,wide]",
    "DISTILLER.TEACHER_CKPT": "[wide.pth,other.pth]",
}
TWO_VIEWS = {"DISTILLER.TYPE": "CRLD"}
DEEPKD = {**KD, "SOLVER.TRAINER": "deepkd"}
AS_DKD = {**DEEPKD, "SOLVER.DEEPKD.DKD": "True"}
TOP_K = {**DEEPKD, "SOLVER.DEEPKD.TOPK": "2"}
STAGES = {"SOLVER.LR_DECAY_STAGES": "[1]"}
FREQUENT = {"LOG.SAVE_CHECKPOINT_FREQ": "1"}
MIXED = {"SOLVER.MIXUP": "0.5", "SOLVER.CUTMIX": "0.5"}
SMOOTH_BCE = {"SOLVER.TASK_LOSS": "bce", "SOLVER.LABEL_SMOOTHING": "0.1"}

KEYS = {  # key -> another value, and the surroundings in which it has an effect
    "EXPERIMENT.PROJECT": ("other", {}),
    "EXPERIMENT.NAME": ("other", {}),
    "EXPERIMENT.TAG": ("other", {"EXPERIMENT.NAME": ""}),
    "DATASET.TYPE": ("cifar10", {"DATASET.ROOT": "/nowhere"}),
    "DATASET.ROOT": ("/elsewhere", {"DATASET.TYPE": "cifar10", "DISTILLER.STUDENT": "resnet8"}),
    "DATASET.VAL_SPLIT": ("0.2", {}),
    "DATASET.TEST.EVALUATE": ("False", {"DATASET.VAL_SPLIT": "0.2"}),
    "DATASET.RANDAUGMENT": ("[2,9]", {}),
    "DATASET.STRONG_VIEWS": ("7", TWO_VIEWS),
    "DATASET.STRONG_FORM": ("torchvision", TWO_VIEWS),
    "DATASET.RANDOM_ERASING": ("0.5", {}),
    "DISTILLER.TYPE": ("NONE", KD),
    "DISTILLER.TEACHER": ("narrow", {**KD, "DISTILLER.TEACHER_CKPT": "narrow.pth"}),
    "DISTILLER.STUDENT": ("wide", {}),
    "DISTILLER.TEACHER_CKPT": ("other.pth", KD),
    "DISTILLER.CHECK_TEACHER": ("False", KD),
    "DISTILLER.STUDENT_CKPT": ("narrow.pth", {}),
    "DISTILLER.TEACHER_WEIGHTS": ("[0.9,0.1]", TWO_TEACHERS),
    "DISTILLER.LSKD": ("True", KD),
    "DISTILLER.EAKD": ("True", KD),
    "DISTILLER.EAKD_TEMPERATURE": ("2.0", {**KD, "DISTILLER.EAKD": "True"}),
    "DISTILLER.SHUFFLE_TEACHER": ("True", KD),
    "SOLVER.TRAINER": ("dot", KD),
    "SOLVER.DOT.DELTA": ("0.05", {**KD, "SOLVER.TRAINER": "dot"}),
    "SOLVER.DEEPKD.DELTA_TOG": ("0.05", DEEPKD),
    "SOLVER.DEEPKD.DELTA_TCG": ("0.05", DEEPKD),
    "SOLVER.DEEPKD.DELTA_NCG": ("0.05", DEEPKD),
    "SOLVER.DEEPKD.DKD": ("True", DEEPKD),
    "SOLVER.DEEPKD.ALPHA": ("2.0", AS_DKD),
    "SOLVER.DEEPKD.BETA": ("2.0", AS_DKD),
    "SOLVER.DEEPKD.WARMUP_FACTOR": ("1", AS_DKD),
    "SOLVER.DEEPKD.TOPK": ("1", DEEPKD),
    "SOLVER.DEEPKD.DYNAMIC_TOPK": ("False", TOP_K),
    "SOLVER.SEED": ("2", {}),
    "SOLVER.BATCH_SIZE": ("16", {}),
    "SOLVER.CHECKPOINT_MINUTES": ("0.000001", {"SOLVER.EPOCHS": "1"}),
    "SOLVER.EPOCHS": ("1", {}),
    "SOLVER.TYPE": ("AdamW", {}),
    "SOLVER.LR": ("0.01", {}),
    "SOLVER.SCHEDULE": ("cosine", {}),
    "SOLVER.LR_DECAY_STAGES": ("[1]", {}),
    "SOLVER.LR_DECAY_RATE": ("0.5", STAGES),
    "SOLVER.WARMUP_EPOCHS": ("1", {}),
    "SOLVER.WEIGHT_DECAY": ("0.01", {}),
    "SOLVER.DECAY_NORM_AND_BIAS": ("False", {"SOLVER.WEIGHT_DECAY": "0.1"}),
    "SOLVER.TASK_LOSS": ("bce", {}),
    "SOLVER.LABEL_SMOOTHING": ("0.1", {}),
    "SOLVER.BCE_THRESHOLD": ("0.2", SMOOTH_BCE),
    "SOLVER.MIXUP": ("0.5", {}),
    "SOLVER.CUTMIX": ("0.5", {}),
    "SOLVER.MIX_PROB": ("0.5", MIXED),
    "SOLVER.MIX_SWITCH_PROB": ("0.1", MIXED),
    "SOLVER.EMA": ("0.9", {}),
    "SOLVER.ACCUMULATE": ("2", {}),
    "SOLVER.MOMENTUM": ("0.5", {}),
    "SOLVER.NESTEROV": ("True", {}),
    "SOLVER.BETAS": ("[0.5,0.9]", {"SOLVER.TYPE": "Adam", "SOLVER.LR": "0.001"}),
    "SOLVER.CLIP_GRAD_NORM": ("0.1", {}),
    "SOLVER.TRAIN_ONLY": ("head", {}),
    "SOLVER.HEAD_LR_FACTOR": ("2.0", {}),
    "SOLVER.AMP": ("bf16", {}),
    "SOLVER.DETERMINISTIC": ("True", {}),
    "SOLVER.CUDA_GRAPH": ("True", {}),
    "TEACHER_MEMO.ENABLED": ("False", KD),
    "TEACHER_MEMO.FOLDER": ("elsewhere", KD),
    "TEACHER_MEMO.DTYPE": ("bf16", KD),
    "TEACHER_MEMO.TOP_K": ("1", KD),
    "TEACHER_MEMO.MAX_GB": ("0", KD),
    "LOG.PRINT": ("False", {}),
    "LOG.PREFIX": ("elsewhere", {}),
    "LOG.TENSORBOARD_FREQ": ("1", {}),
    "LOG.SAVE_CHECKPOINT_FREQ": ("1", {}),
    "LOG.KEEP": ("1", FREQUENT),
    "LOG.WANDB": ("True", {}),
    "COMBINED.CE_WEIGHT": ("0.5", {"DISTILLER.TYPE": "KD+DKD"}),
    "COMBINED.WEIGHTS": ("[0.5,2.0]", {"DISTILLER.TYPE": "KD+DKD"}),
}

ERRORS = ("DATASET.TYPE", "DATASET.ROOT", "DATASET.RANDAUGMENT")
"""Their effect is an error; the other runs succeed."""

LOADER_KEYS = (
    *("DATASET.NUM_WORKERS", "DATASET.WORKER_TIMEOUT", "DATASET.TEST.BATCH_SIZE"),
    *("DATASET.ON_BAD_IMAGE", "DATASET.PREFETCH"),
)
"""They change how images are read, and no result; see `test_the_keys_of_loaders_are_live`."""

PROCESS_KEYS = ("SOLVER.SYNC_BATCH_NORM", "SOLVER.PROCESS_TIMEOUT")
"""They have an effect with several processes; see tests/distributed/test_commands.py."""

FOLDER_KEYS = {
    "DATASET.LIST": "list.csv",
    "DATASET.TEST_SPLIT": "0.5",
    "DATASET.SPLIT_SEED": "1",
    "DATASET.RESIDENT": "off",
    "DATASET.RESIDENT_GB": "0.000001",
    "DATASET.FOLDER.SIZE": "12",
    "DATASET.FOLDER.RESIZE": "20",
    "DATASET.FOLDER.CROP": "none",
    "DATASET.FOLDER.FLIP": "False",
    "DATASET.FOLDER.MEAN": "[0.1,0.2,0.3]",
    "DATASET.FOLDER.STD": "[0.1,0.2,0.3]",
    "DATASET.FOLDER.INTERPOLATION": "nearest",
}
"""Of own images; see `test_the_keys_of_own_images_are_live`."""

VIEW_KEYS = {"DATASET.VIEWS": "3", "DATASET.VIEWS_SEED": "1"}
"""Of images that are read from files, one after the other."""

CROP_KEYS = {"DATASET.SCALED_DECODING": "False"}
"""Of random crops of own images; see the same test."""

BASE = {
    "DATASET.TYPE": "tiny",
    "DISTILLER.TYPE": "NONE",
    "DISTILLER.TEACHER": "wide",
    "DISTILLER.STUDENT": "narrow",
    "DISTILLER.TEACHER_CKPT": "wide.pth",
    "SOLVER.EPOCHS": "2",
    "SOLVER.BATCH_SIZE": "24",
    "SOLVER.AMP": "off",
    "LOG.WANDB": "False",
    "LOG.PREFIX": "o",
    "EXPERIMENT.NAME": "run",
}


@pytest.fixture
def observe(tool, tmp_path, monkeypatch):
    """Train with these keys; return everything that a user can see of the run, but for times."""
    monkeypatch.setitem(sys.modules, "wandb", None)  # "Wandb is off" is an effect, and a quick one
    torch.manual_seed(0)
    channels = {"wide.pth": 12, "other.pth": 12, "narrow.pth": 6}
    files = {name: TinyNet(number).state_dict() for name, number in channels.items()}

    def run(**keys):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, state in files.items():
            torch.save(state, folder / name)
        monkeypatch.chdir(folder)

        merged = {key: value for key, value in (BASE | keys).items() if value}
        words = [word for pair in merged.items() for word in pair]
        done = tool("train", "--plugin", PLUGIN, *words)
        lines = [line for line in done.out.splitlines() if "_seconds" not in line]
        return done.code, done.err, lines, *look_at(folder)

    return run


def look_at(folder):
    """Names of files, metrics without times, hashes of weights, size of the event files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [str(path.relative_to(folder)) for path in files if "events" not in path.name]
    events = sum(path.stat().st_size for path in files if path.name.startswith("events"))
    weights = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("student_latest")
    ]
    metrics = [
        json.loads(line)
        for path in folder.rglob("metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    for record in metrics:
        del record["train_seconds"], record["eval_seconds"], record["data_seconds"]
    return names, metrics, weights, events


@pytest.fixture(scope="module")
def unchanged():
    """What was observed without the change, by the surroundings."""
    return {}


@pytest.fixture(scope="module")
def live():
    """The keys that were seen to have an effect."""
    return set()


@pytest.mark.parametrize("key", KEYS)
def test_the_key_is_live(observe, unchanged, live, key):
    value, surroundings = KEYS[key]
    name = str(surroundings)
    if name not in unchanged:
        unchanged[name] = observe(**surroundings)
    changed = observe(**surroundings | {key: value})
    assert changed != unchanged[name]
    assert (changed[0] == 0) == (key not in ERRORS), changed
    live.add(key)


def test_observing_twice_sees_the_same(observe, unchanged):
    """Otherwise the tests above would prove nothing."""
    first = unchanged.get("{}") or observe()
    assert first[0] == 0
    assert first == observe()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_keys_of_loaders_are_live(tmp_path, live, monkeypatch):
    monkeypatch.setattr("edkd.dataset.cores.available_cores", lambda: 4)
    for part in ("train", "val"):
        (tmp_path / part / "n01").mkdir(parents=True)
        for number in (0, 1):
            Image.new("RGB", (8, 8)).save(tmp_path / part / "n01" / f"{number}.png")

    found = []
    for workers, timeout, size, ahead in (("0", "7.5", "2", "5"), ("3", "7.5", "1", "5")):
        opts = ["DATASET.TYPE", "tiny_folder", "DATASET.ROOT", str(tmp_path)]
        opts += ["DISTILLER.STUDENT", "narrow", "DATASET.NUM_WORKERS", workers]
        opts += ["DATASET.WORKER_TIMEOUT", timeout, "DATASET.TEST.BATCH_SIZE", size]
        opts += ["DATASET.PREFETCH", ahead]
        data = get_dataset(load_config(opts=opts, plugins=[str(PLUGIN)]), torch.device("cpu"))
        for loader in (data.train.loader, data.test.loader):
            found.append((loader.num_workers, loader.timeout, loader.prefetch_factor))
        found.append(len(data.test))
    assert found == [(0, 0, None), (0, 0, None), 1, (3, 7.5, 5), (3, 7.5, 5), 2]

    # The last options once more, with an image that cannot be read.
    (tmp_path / "train" / "n01" / "0.png").write_bytes(b"x")
    data = get_dataset(load_config(opts=opts), torch.device("cpu"))
    with pytest.raises(UserError, match=r"0\.png"):
        data.check(False)
    opts += ["DATASET.ON_BAD_IMAGE", "replace"]
    get_dataset(load_config(opts=opts), torch.device("cpu")).check(False)
    live.update(LOADER_KEYS)


def test_the_keys_of_own_images_are_live(tmp_path, live):
    generator = torch.Generator().manual_seed(0)
    rows = ["path,label"]
    for number in range(8):
        pixels = torch.randint(256, (30, 40, 3), generator=generator, dtype=torch.uint8)
        path = tmp_path / f"n0{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
        rows.append(f"{path},{path.parent.name}")
    (tmp_path / "list.csv").write_text("\n".join(rows[:-1]))

    def seen(**changes):
        keys = {"DATASET.TYPE": "folder", "DATASET.ROOT": str(tmp_path)}
        keys |= {"DISTILLER.STUDENT": "ResNet18", "DISTILLER.TYPE": "NONE"}
        keys |= {"DATASET.FOLDER.SIZE": "16", "DATASET.NUM_WORKERS": "0"} | changes
        opts = [word for pair in keys.items() for word in pair]
        data = get_dataset(load_config(opts=opts), torch.device("cpu"))
        batches = [*data.train.epoch(1), *data.test.epoch()]
        return hashlib.sha256(b"".join(batch.image.numpy().tobytes() for batch in batches)).digest()

    unchanged = seen()
    assert unchanged == seen()
    for key, value in FOLDER_KEYS.items():
        changes = {key: value}
        if key in ("DATASET.FOLDER.MEAN", "DATASET.FOLDER.STD"):  # one is not given alone
            usual = {"MEAN": "[0.485,0.456,0.406]", "STD": "[0.229,0.224,0.225]"}
            changes = {f"DATASET.FOLDER.{name}": usual[name] for name in usual} | changes
        if key == "DATASET.LIST":
            changes[key] = str(tmp_path / value)
        assert seen(**changes) != unchanged, key
        live.add(key)

    changes = {"DATASET.RESIDENT": "off"}
    for key, value in VIEW_KEYS.items():
        before = seen(**changes)
        changes[key] = value
        assert seen(**changes) != before, key
        live.add(key)

    crops = {"DATASET.FOLDER.CROP": "resized"}
    for key, value in CROP_KEYS.items():
        assert seen(**crops, **{key: value}) != seen(**crops), key
        live.add(key)


def test_all_keys_are_above(live, figure):
    """Those of the methods aside."""
    known = {key for key in table() if key.split(".")[0] not in method_names()}
    assert (
        set(KEYS)
        | set(LOADER_KEYS)
        | set(FOLDER_KEYS)
        | set(VIEW_KEYS)
        | set(PROCESS_KEYS)
        | set(CROP_KEYS)
        == known
    )
    figure("R12", f"{len(live)} of {len(known)} keys were changed and had an effect")
