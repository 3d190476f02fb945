"""The tests in another checkout: what it prints, which data it finds, what it needs."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT, TESTS

FILE = """\
import pytest


@pytest.mark.needs("data/present")
def test_present(real_data):
    assert (real_data / "data/present").is_dir()


@pytest.mark.needs("data/absent")
def test_absent(real_data):
    raise AssertionError


def test_golden(golden):
    assert golden.parent.name == "tests"
"""


@pytest.mark.slow
def test_a_checkout_of_its_own(tmp_path, monkeypatch):
    """Its own data/ counts, golden values are in tests/, and pytest says what it skipped and why.

    A newcomer who has only the repository must be able to check what the README states.
    """
    for name in ("EDKD_DATA_ROOT", "EDKD_GOLDEN", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    checkout = tmp_path / "parent" / "checkout"
    (checkout / "data" / "present").mkdir(parents=True)
    (checkout / "edkd").symlink_to(CHECKOUT / "edkd")
    shutil.copy(CHECKOUT / "pyproject.toml", checkout)
    shutil.copytree(TESTS / "golden", checkout / "tests" / "golden")
    for path in TESTS.glob("*.py"):
        if not path.name.startswith("test_"):
            shutil.copy(path, checkout / "tests")
    (checkout / "tests" / "test_needs.py").write_text(FILE)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 1 skipped" in done.stdout.splitlines()[-1]
    assert f"no data/absent in {checkout}; `edkd download` fetches real data" in done.stdout
