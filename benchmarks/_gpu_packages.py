"""Packages that a machine lacks, from a folder of wheels. It imports neither torch nor edkd."""

import importlib
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

NEEDED = {"numpy": "numpy", "yacs": "yacs", "yaml": "pyyaml", "tqdm": "tqdm"}
"""Projects by the module that is imported."""

USEFUL = {"tensorboardX": "tensorboardx", "google.protobuf": "protobuf", "packaging": "packaging"}
"""Without these, runs write no curves for TensorBoard."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64")
PLATFORMS += ("manylinux2014_x86_64", "manylinux1_x86_64")


def bundle(folder: Path, python: str) -> list[str]:
    """Download the wheels of all packages; return their names.

    Args:
        folder: of the wheels.
        python: version of Python on the other machine, as "3.12".
    """
    words = ["download", "--no-deps", "--only-binary=:all:", "--python-version", python]
    for platform in PLATFORMS:
        words += ["--platform", platform]
    projects = [*NEEDED.values(), *USEFUL.values()]
    command = [sys.executable, "-m", "pip", *words, "-d", str(folder), *projects]
    subprocess.run(command, check=True)
    return sorted(path.name for path in folder.glob("*.whl"))


def bring(wheels: Path, site: Path) -> list[str]:
    """Unpack the wheels of packages that are not installed, so that they can be imported.

    Args:
        wheels: folder of wheels; it may be absent.
        site: where they are unpacked; it joins `sys.path`.

    Returns:
        The modules that are needed and still absent.
    """
    site.mkdir(parents=True, exist_ok=True)
    if str(site) not in sys.path:
        sys.path.append(str(site))

    for module, project in (NEEDED | USEFUL).items():
        wheel = find_wheel(wheels, project)
        if wheel is not None and not is_installed(module):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    importlib.invalidate_caches()
    return [module for module in NEEDED if not is_installed(module)]


def is_installed(module: str) -> bool:
    """Whether a module can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def find_wheel(wheels: Path, project: str) -> Path | None:
    """A wheel of a project for this version of Python; None where there is none."""
    for path in sorted(wheels.glob("*.whl")):
        name, *_, python, abi, _ = path.stem.split("-")
        if name.lower() == project and fits(python.split("."), abi):
            return path
    return None


def fits(pythons: Sequence[str], abi: str) -> bool:
    """Whether a wheel with these tags is for this version of Python."""
    minor = sys.version_info.minor
    if abi == "abi3":  # for the version that is named, and all later ones
        named = (re.fullmatch(r"cp3(\d+)", python) for python in pythons)
        return any(match is not None and int(match[1]) <= minor for match in named)
    return "py3" in pythons or f"cp3{minor}" in pythons
