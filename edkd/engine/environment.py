"""Where and how a run was made: versions, hardware, git commit, command."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import edkd
from edkd.dataset.cores import cores_by_affinity
from edkd.engine.config.plugins import plugins_of
from edkd.engine.device import amp_dtype, precision_name

_PACKAGES = ("torch", "torchvision", "numpy", "yacs")


def environment(device: torch.device, cfg: Any) -> dict[str, Any]:
    """Facts for `environment.json`.

    Args:
        device: of the run.
        cfg: its configuration, of which the plugins are noted.
    """
    code = Path(edkd.__file__).parent

    return {
        "command": [sys.executable, *sys.argv],
        "cwd": os.getcwd(),
        "plugins": plugins_of(cfg),
        "edkd": edkd.__version__,
        "edkd_path": str(code),
        "commit": _git_commit(),
        "python": platform.python_version(),
        "packages": _versions(),
        "system": platform.platform(),
        "device": device_name(device),
        "cores": cores_by_affinity(),
        "threads": torch.get_num_threads(),
        "precision": precision_name(amp_dtype(cfg.SOLVER.AMP, device)),
    }


def device_name(device: torch.device) -> str:
    """The hardware of a device, as "NVIDIA H100" or a processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _processor()
    return str(device)


def in_notebook() -> bool:
    """Whether this runs in Jupyter."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str:
    """The commit of the checkout that this code is in, "+changes" where it was edited; or ""."""
    folder = Path(edkd.__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        commit = _output([*git, "rev-parse", "HEAD"])
        changes = _output([*git, "status", "--porcelain", "--untracked-files=no", "."])
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}+changes" if changes else commit


def _output(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return run.stdout.strip()
