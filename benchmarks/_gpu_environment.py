"""The slice "environment": the hardware, the driver, the versions."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch
from _gpu_record import Record
from _gpu_setting import Figures, Part, Setting, require

from edkd.dataset.cores import cores_by_affinity
from edkd.engine.environment import device_name

OLDEST = (2, 11)
"""Of torch."""

PACKAGES = ("numpy", "yacs", "torchvision", "tensorboardX", "pytest", "Pillow", "scikit-learn")


def environment_parts(setting: Setting, record: Record) -> list[Part]:
    """The parts of the slice."""
    return [
        Part("hardware", lambda: hardware(setting)),
        Part("versions", versions),
    ]


def hardware(setting: Setting) -> Figures:
    """The device and the processor."""
    device = setting.device
    figures = {
        "device": device_name(device),
        "processor": device_name(torch.device("cpu")),
        "cores": cores_by_affinity(),
        "system": platform.platform(),
    }
    if device.type != "cuda":
        return figures

    facts = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return figures | {
        "GPUs": torch.cuda.device_count(),
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory in GiB": total / 2**30,
        "of this free": free / 2**30,
        "driver": driver(),
    }


def driver() -> str:
    """The version of the driver, from nvidia-smi; "unknown" where that is absent."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split()[0] if done.stdout.split() else "unknown"


def versions() -> Figures:
    """The versions of what is used."""
    found = {"Python": platform.python_version(), "torch": torch.__version__}
    found["CUDA"] = torch.version.cuda or "none"
    found["cuDNN"] = str(torch.backends.cudnn.version() or "none")
    found["NCCL"] = nccl()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"

    numbers = torch.__version__.split("+")[0].split(".")
    is_new = (int(numbers[0]), int(numbers[1])) >= OLDEST
    require(is_new, f"torch is {torch.__version__}; it must be {OLDEST[0]}.{OLDEST[1]} or newer")
    return found


def nccl() -> str:
    """The version of NCCL."""
    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        return "none"
    return ".".join(str(number) for number in torch.cuda.nccl.version())
