"""Where the tests find the commands, the golden values and the real data."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]
SHARED = CHECKOUT.parent / "shared"
GOLDEN = Path(os.environ.get("EDKD_GOLDEN", SHARED / "golden"))

os.environ.setdefault("WANDB_MODE", "offline")

if torch.cuda.is_available():  # runs are compared bit by bit, on the CPU: only this process, and what asks, has the GPU
    torch.cuda.init()
    torch.cuda.device_count()  # is remembered
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

FULL = os.environ.get("EDKD_RELIABILITY") == "full"
FIGURES: dict[str, list[str]] = {}


class Outcome(NamedTuple):
    """What a command of tools/ did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden values: EDKD_GOLDEN, else ../shared/golden."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden values at {GOLDEN}")
    return GOLDEN


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path | None:
    """A folder with data/ and download_ckpts/: EDKD_DATA_ROOT, else what ../shared/data lays out."""
    script = SHARED / "data" / "unpack.sh"
    if root := os.environ.get("EDKD_DATA_ROOT"):
        return Path(root)
    if not script.is_file():
        return None
    root = tmp_path_factory.mktemp("real")
    subprocess.run([script, root], check=True)
    return root


@pytest.fixture
def real_data(request, data_root) -> Path:
    """That folder; the test is skipped where it lacks what the mark `needs` names."""
    mark = request.node.get_closest_marker("needs")
    absent = [name for name in mark.args if data_root is None or not (data_root / name).exists()]
    if absent:
        pytest.skip(f"no real data: {', '.join(absent)} is not below EDKD_DATA_ROOT, nor is there ../shared/data")
    return data_root


def load_tool(name: str):
    """The module tools/<name>.py."""
    if str(CHECKOUT / "tools") not in sys.path:
        sys.path.insert(0, str(CHECKOUT / "tools"))
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(capsys) -> Callable[..., Outcome]:
    """Run a command of tools/ in this process, as from the shell: tool("train", "--cfg", ...) -> Outcome.

    Where it could choose a device, it takes the CPU.
    """
    from edkd.errors import run_command

    def run(name: str, *arguments: object) -> Outcome:
        words: Sequence[str] = [str(argument) for argument in arguments]
        if name in ("train", "eval") and "--device" not in words:
            words = ["--device", "cpu", *words]
        main, code = load_tool(name).main, 0
        capsys.readouterr()
        try:
            run_command(lambda _: main(words))
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def extent() -> Callable:
    """extent(short, full): the one in CI, the other in `make reliability`."""
    return lambda short, full: full if FULL else short


@pytest.fixture(scope="session")
def figure() -> Callable[[str, str], None]:
    """figure("R5", "0 of 1220 damaged checkpoints believed"): a line of the table at the end of the session."""
    return lambda name, text: FIGURES.setdefault(name, []).append(text)


def pytest_terminal_summary(terminalreporter):
    if FIGURES:
        terminalreporter.section(f"reliability, {'full' if FULL else 'short'} form")
        for name in sorted(FIGURES, key=lambda name: int(name[1:])):
            for text in FIGURES[name]:
                terminalreporter.line(f"| {name} | {text} |")
