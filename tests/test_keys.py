"""No key is dead: each is changed, and what a run leaves or says must change with it."""

import hashlib
import json

import pytest
import torch

from edkd.dataset import get_dataset
from edkd.distillers import distiller_dict
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.load_cfg import flatten, load_cfg
from edkd.engine.optim import set_learning_rate
from edkd.engine.trainer import Trainer, trainer_dict
from edkd.models import get_model

ADAM = ["SOLVER.TYPE", "Adam", "SOLVER.LR", "0.001"]
CIFAR10 = ["DATASET.TYPE", "cifar10", "DATASET.ROOT", "/nowhere"]
NAMED = ["EXPERIMENT.NAME", ""]
KEYS = [  # key, another value, what it needs to have an effect
    ("EXPERIMENT.PROJECT", "other"),
    ("EXPERIMENT.NAME", "other"),
    ("EXPERIMENT.TAG", "other", *NAMED),
    ("DATASET.TYPE", "cifar10", "DATASET.ROOT", "/nowhere"),
    ("DATASET.ROOT", "/elsewhere", *CIFAR10),
    ("DATASET.VAL_SPLIT", "0.2"),
    ("DISTILLER.TYPE", "NONE"),
    ("DISTILLER.TEACHER", "resnet14"),
    ("DISTILLER.STUDENT", "resnet14"),
    ("DISTILLER.TEACHER_CKPT", "other teacher"),
    ("SOLVER.TRAINER", "other"),
    ("SOLVER.SEED", "2"),
    ("SOLVER.BATCH_SIZE", "256"),
    ("SOLVER.EPOCHS", "1"),
    ("SOLVER.TYPE", "AdamW"),
    ("SOLVER.LR", "0.01"),
    ("SOLVER.SCHEDULE", "cosine"),
    ("SOLVER.LR_DECAY_STAGES", "[1]"),
    ("SOLVER.LR_DECAY_RATE", "0.5", "SOLVER.LR_DECAY_STAGES", "[1]"),
    ("SOLVER.WARMUP_EPOCHS", "1"),
    ("SOLVER.WEIGHT_DECAY", "0.01"),
    ("SOLVER.MOMENTUM", "0.5"),
    ("SOLVER.NESTEROV", "True"),
    ("SOLVER.BETAS", "[0.5,0.9]", *ADAM),
    ("SOLVER.CLIP_GRAD_NORM", "0.1"),
    ("SOLVER.AMP", "bf16"),
    ("SOLVER.DETERMINISTIC", "True"),
    ("SOLVER.CUDA_GRAPH", "True"),
    ("TEACHER_MEMO.ENABLED", "False"),
    ("TEACHER_MEMO.FOLDER", "elsewhere"),
    ("TEACHER_MEMO.DTYPE", "bf16"),
    ("TEACHER_MEMO.MAX_GB", "0"),
    ("LOG.PREFIX", "elsewhere"),
    ("LOG.TENSORBOARD_FREQ", "1"),
    ("LOG.SAVE_CHECKPOINT_FREQ", "1"),
    ("LOG.KEEP", "1", "LOG.SAVE_CHECKPOINT_FREQ", "1"),
    ("LOG.WANDB", "True"),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    for name in ("teacher", "other teacher"):
        save_checkpoint({"model": get_model("cifar", "resnet8", 10).state_dict()}, folder / name)
    return folder / "teacher"


class OtherTrainer(Trainer):
    """One that never learns."""

    def train_step(self, epoch, *inputs):
        set_learning_rate(self.optimizer, 0.0)
        return super().train_step(epoch, *inputs)


@pytest.fixture(scope="module")
def unchanged():
    """What was observed without the change, by what the key needs."""
    return {}


@pytest.fixture
def observe(tool, tmp_path, monkeypatch, teacher):
    """Run with options; return all that a user can see of it, but for times."""

    def run(*opts):
        base = ["DATASET.TYPE", "digits", "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "resnet8"]
        base += [
            "DISTILLER.STUDENT",
            "resnet8",
            "DISTILLER.TEACHER_CKPT",
            teacher,
            "SOLVER.EPOCHS",
            "2",
        ]
        base += [
            "SOLVER.BATCH_SIZE",
            "300",
            "SOLVER.AMP",
            "off",
            "LOG.WANDB",
            "False",
            "DATASET.TEST.BATCH_SIZE",
            "898",
        ]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        monkeypatch.chdir(folder)
        pairs = [*base, "LOG.PREFIX", "o", "EXPERIMENT.NAME", "run", *opts]
        merged = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if merged["DISTILLER.TEACHER_CKPT"] == "other teacher":
            merged["DISTILLER.TEACHER_CKPT"] = teacher.with_name("other teacher")
        monkeypatch.setitem(trainer_dict, "other", OtherTrainer)
        if not merged["EXPERIMENT.NAME"]:
            del merged["EXPERIMENT.NAME"]
        words = [str(word) for pair in merged.items() for word in pair]
        outcome = tool("train", *words)
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        metrics = [
            json.loads(line)
            for path in folder.rglob("metrics.jsonl")
            for line in path.read_text().splitlines()
        ]
        for record in metrics:
            del record["train_seconds"], record["eval_seconds"]
        weights = [
            hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("student_latest")
        ]
        events = sum(path.stat().st_size for path in folder.rglob("events.*"))
        names = [str(path) for path in files if not path.name.startswith("events")]
        said = [line for line in outcome.out.splitlines() if "_seconds" not in line]
        return outcome.code, outcome.err, said, names, metrics, weights, events

    return run


@pytest.fixture(scope="module")
def live():
    """The keys that were seen to have an effect."""
    return set()


@pytest.mark.parametrize(
    ("key", "value", "needs"), [(key, value, needs) for key, value, *needs in KEYS]
)
def test_the_key_is_live(observe, unchanged, live, key, value, needs):
    needs = tuple(
        word
        for pair in zip(needs[::2], needs[1::2], strict=True)
        if pair[0] != key
        for word in pair
    )
    if needs not in unchanged:
        unchanged[needs] = observe(*needs)
    assert observe(*needs, key, value) != unchanged[needs]
    live.add(key)


def test_observing_twice_sees_the_same(observe, unchanged):
    assert observe() == (unchanged.get(()) or observe())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_num_workers_is_live(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        (tmp_path / part / "n01").mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / part / "n01" / "0.png")
    for workers in (0, 3):
        opts = [
            "DATASET.TYPE",
            "tiny_imagenet",
            "DATASET.ROOT",
            str(tmp_path),
            "DISTILLER.STUDENT",
            "ResNet18",
        ]
        data = get_dataset(
            load_cfg(
                opts=[*opts, "DATASET.NUM_WORKERS", str(workers), "DATASET.WORKER_TIMEOUT", "7.5"]
            ),
            torch.device("cpu"),
        )
        assert data.train.loader.num_workers == data.test.loader.num_workers == workers
        assert data.train.loader.timeout == data.test.loader.timeout == (7.5 if workers else 0)


def test_the_batch_size_of_evaluation_is_live():
    sizes = [
        len(
            get_dataset(
                load_cfg(opts=["DATASET.TYPE", "digits", "DATASET.TEST.BATCH_SIZE", n]),
                torch.device("cpu"),
            ).test
        )
        for n in ("898", "449")
    ]
    assert sizes == [1, 2]


def test_all_keys_are_above(live, figure):
    """Those of the methods are changed in tests/distillers."""
    elsewhere = {
        "DATASET.NUM_WORKERS",
        "DATASET.WORKER_TIMEOUT",
        "DATASET.TEST.BATCH_SIZE",
        "SOLVER.CHECKPOINT_MINUTES",
    }
    known = {key for key, _ in flatten(load_cfg()) if key.split(".")[0] not in distiller_dict}
    assert {key for key, *_ in KEYS} | elsewhere == known
    figure(
        "R12",
        f"{len(live | elsewhere)} of {len(known)} keys were changed, those of methods aside, and had an effect",
    )
