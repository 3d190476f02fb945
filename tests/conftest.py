"""Where tests find commands, golden values, real data, and a run of a tenth of a second.

The environment decides how much is run and with which data:

EDKD_RELIABILITY  short (make test), all (make test-all) or full (make reliability)
EDKD_DATA_ROOT    a folder with data/ and download_ckpts/; default: this checkout
EDKD_GOLDEN       a folder of golden values; default: tests/golden
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from edkd import signals
from tests import processes
from tests.digits_runs import train_all
from tests.runs import outcome
from tests.small import TinyNet

TESTS = Path(__file__).resolve().parent
CHECKOUT = TESTS.parent
SHARED = CHECKOUT.parent / "shared"
PLUGIN = TESTS / "tiny_data.py"

os.environ.setdefault("WANDB_MODE", "offline")

# Bits are compared on the CPU: only this process, and tests that name a GPU, see one.
if torch.cuda.is_available():
    torch.cuda.init()
    torch.cuda.device_count()  # cached from here on
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

FORM = os.environ.get("EDKD_RELIABILITY", "short")
if FORM not in ("short", "all", "full"):
    raise pytest.UsageError(f"EDKD_RELIABILITY is {FORM!r}, not short, all or full")

# Small tensors: with more threads, a test takes ten times as long where the cores are busy.
if FORM != "full":
    torch.set_num_threads(1)

FIGURES: dict[str, list[str]] = {}


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


# Parts from outside.


@pytest.fixture(scope="session")
def registered() -> None:
    """All that registers is imported."""
    from edkd.engine.config import table

    table.declared()


@pytest.fixture(autouse=True)
def own_plugins(registered: None) -> Iterator[None]:
    """What a test registers and imports as a plugin is not there for the next test."""
    from edkd.engine.config import plugins, table

    registries = [registry._entries for registry in table.REGISTRIES]
    held = [*registries, table._added, plugins._imported]
    before = [dict(entries) for entries in held]

    yield

    for entries, kept in zip(held, before, strict=True):
        entries.clear()
        entries.update(kept)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """No test leaves a command's reactions to signals behind: the next test would be stopped."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}

    yield

    left = [number for number in before if signal.getsignal(number) is signals._receive]
    for number in left:
        signal.signal(number, before[number])
    assert not left


# Golden values and real data.


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden values."""
    given = os.environ.get("EDKD_GOLDEN")
    folders = [Path(given)] if given else [TESTS / "golden", SHARED / "golden"]
    for folder in folders:
        if (folder / "models.json").is_file():
            return folder
    pytest.skip(f"no golden values in {' or '.join(map(str, folders))}")


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory) -> Callable[[], Path | None]:
    """Unpacks ../shared/data where it exists, once, on the first call."""
    found: list[Path | None] = []

    def unpack() -> Path | None:
        if not found:
            found.append(_unpack(tmp_path_factory))
        return found[0]

    return unpack


def _unpack(tmp_path_factory) -> Path | None:
    script = SHARED / "data" / "unpack.sh"
    if not script.is_file():
        return None
    root = tmp_path_factory.mktemp("real")
    subprocess.run([script, root], check=True)
    return root


@pytest.fixture
def real_data(request, unpacked) -> Path:
    """A folder with the real data that the mark `needs` names; the test is skipped without them."""
    names = request.node.get_closest_marker("needs").args
    given = os.environ.get("EDKD_DATA_ROOT")
    root = Path(given) if given else CHECKOUT
    absent = [name for name in names if not (root / name).exists()]
    if not absent:
        return root

    elsewhere = None if given else unpacked()
    if elsewhere and all((elsewhere / name).exists() for name in names):
        return elsewhere
    pytest.skip(f"no {' and no '.join(absent)} in {root}; `edkd download` fetches real data")


# Commands.


@pytest.fixture
def tool(capsys, monkeypatch) -> Callable[..., Outcome]:
    """Run a command in this process as tools/<name>.py would: tool("train", "--cfg", ...).

    train, finetune, softlabels, eval and demo get `--device cpu` where the test names no device.
    But in the full form, files are not synced to the disk, which only a loss of power could reveal.
    """
    from edkd.commands._command_line import run_command

    if FORM != "full":
        monkeypatch.setattr(os, "fsync", lambda handle: None)

    def run(name: str, *arguments: object) -> Outcome:
        words: Sequence[str] = [str(argument) for argument in arguments]
        if name in ("train", "eval", "demo", "finetune", "softlabels") and "--device" not in words:
            words = ["--device", "cpu", *words]
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *words])
        capsys.readouterr()

        code: Any = 0
        try:
            run_command(main_of(name), words)
        except SystemExit as exit_:
            code = exit_.code or 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def main_of(name: str) -> Callable[[Sequence[str] | None], None]:
    """The function of a command."""
    import importlib

    return importlib.import_module(f"edkd.commands.{name}").main


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[processes.Server]:
    """A warm process; each of its commands is a process of its own, see tests/processes.py."""
    with processes.Server(tmp_path_factory.mktemp("server")) as server:
        yield server


# A run of tiny networks on tiny images.


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """Weights of the model `wide` of tests/tiny_data.py, never trained."""
    path = tmp_path_factory.mktemp("teacher") / "wide"
    torch.manual_seed(0)
    torch.save({"model": TinyNet(channels=12).state_dict()}, path)
    return path


@pytest.fixture
def tiny(tmp_path, tiny_teacher) -> list[str]:
    """The words that train for three epochs of 9 steps; the name of the run comes after them.

    The teacher is never trained, so its accuracy would cause a warning.
    """
    return [
        *("--plugin", str(PLUGIN), "DATASET.TYPE", "tiny"),
        *("DISTILLER.TEACHER", "wide", "DISTILLER.STUDENT", "narrow"),
        *("SOLVER.EPOCHS", "3", "SOLVER.LR_DECAY_STAGES", "[1,2]", "SOLVER.BATCH_SIZE", "8"),
        *("SOLVER.AMP", "off", "LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", "0"),
        *("LOG.PREFIX", str(tmp_path), "DISTILLER.TEACHER_CKPT", str(tiny_teacher)),
        *("DISTILLER.CHECK_TEACHER", "False"),
        "EXPERIMENT.NAME",
    ]


@pytest.fixture(scope="session")
def digits_runs(tmp_path_factory) -> dict[str, Path]:
    """The folders of finished runs on digits, see tests/digits_runs.py; tests do not change them.

    They take 15 seconds; processes that run tests at the same time share them.
    """
    is_one_of_several = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if is_one_of_several else base) / "digits_runs"
    root.mkdir(exist_ok=True)

    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return train_all(root)


def forget_tiny() -> None:
    """Take the entries of tests/tiny_data.py out of the registries, for tests that list them."""
    from edkd.registry import DATASETS, MODELS

    for name in ("tiny", "tiny_folder"):
        with suppress(KeyError):
            DATASETS.remove(name)
    for name in ("narrow", "wide", "heavy"):
        with suppress(KeyError):
            MODELS.remove(name, "tiny")


@pytest.fixture
def train_tiny(tool, tiny) -> Callable[..., Outcome]:
    """train_tiny("a", KEY, VALUE, ...): that run in this process, in tmp_path/distill/a."""
    return lambda name, *opts: tool("train", *tiny, name, *opts)


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    """The folder of the runs of `train_tiny`."""
    return tmp_path / "distill"


@pytest.fixture
def assert_resumes(train_tiny, tiny_folder) -> Callable[..., None]:
    """assert_resumes(KEY, VALUE, ...): `whole`, and `parts` with a stop between, are the same."""

    def check(*opts):
        words = [*opts, "SOLVER.SCHEDULE", "step"]
        assert train_tiny("whole", *words, "SOLVER.EPOCHS", 2).code == 0
        assert train_tiny("parts", *words, "SOLVER.EPOCHS", 1).code == 0
        assert train_tiny("parts", *words, "SOLVER.EPOCHS", 2, "--resume").code == 0
        assert outcome(tiny_folder / "whole") == outcome(tiny_folder / "parts")

    return check


@pytest.fixture
def train_on(tool, tiny) -> Callable[..., Outcome]:
    """Train `narrow` alone on an image folder: train_on(folder, name, KEY, VALUE, ...)."""

    def run(folder, name, *opts):
        words = ["DATASET.TYPE", "tiny_folder", "DATASET.ROOT", folder, "DATASET.NUM_WORKERS", 0]
        words += ["DISTILLER.TYPE", "NONE", "SOLVER.BATCH_SIZE", 4, "SOLVER.EPOCHS", 1]
        return tool("train", *tiny, name, *words, *opts)

    return run


@pytest.fixture
def image_folder(tmp_path) -> list[str]:
    """The words that train for two epochs of 3 steps on a folder of 12 images."""
    generator = torch.Generator().manual_seed(0)
    size = 64 if FORM == "full" else 12
    for part in ("train", "val"):
        for i in range(12):
            shape = (size, size, 3)
            pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
            folder = tmp_path / "images" / part / f"n0{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")

    kind = ["DATASET.TYPE", "tiny_folder", "DISTILLER.STUDENT", "narrow", "SOLVER.AMP", "off"]
    if FORM == "full":
        kind = ["DATASET.TYPE", "tiny_imagenet", "DISTILLER.STUDENT", "ShuffleV2"]
    return [
        *("--plugin", str(PLUGIN), *kind, "DATASET.ROOT", str(tmp_path / "images")),
        *("SOLVER.BATCH_SIZE", "4", "SOLVER.EPOCHS", "2"),
        *("LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", "0", "LOG.PREFIX", str(tmp_path)),
        "EXPERIMENT.NAME",
    ]


# Reliability.


@pytest.fixture(scope="session")
def extent() -> Callable[..., Any]:
    """extent(short, full, all_=None): the value for this form; without `all_`, `short` for both."""

    def choose(short: Any, full: Any, all_: Any = None) -> Any:
        if FORM == "all" and all_ is not None:
            return all_
        return full if FORM == "full" else short

    return choose


@pytest.fixture(scope="session")
def figure() -> Callable[[str, str], None]:
    """figure("R5", "0 of 1200 damaged checkpoints accepted"): a line of the table at the end."""
    return lambda name, text: FIGURES.setdefault(name, []).append(text)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures."""
    if not FIGURES:
        return
    terminalreporter.section(f"reliability, {FORM} form")
    for name in sorted(FIGURES, key=lambda name: int(name[1:])):
        for text in FIGURES[name]:
            terminalreporter.line(f"| {name} | {text} |")
