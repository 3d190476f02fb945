"""benchmarks/gpu.py: its slices continue, keep what they had, and bring the packages they need."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile

import pytest
import torch

from tests.conftest import CHECKOUT
from tests.test_matrix import module

GPU = module("gpu")
PACKAGES = module("_gpu_packages")
RECORD = module("_gpu_record")
BENCHMARKS = CHECKOUT / "benchmarks"
SETTINGS = {"device": "cpu", "small": True}


# The command, with a worker whose parts take no time.

WORKER = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
from _gpu_record import Record
output, slices = sys.argv[2], sys.argv[10:]
for name in slices:
    record = Record(__import__("pathlib").Path(output), name, {settings!r})
    if record.is_done:
        continue
    for part in ("first", "second", "third"):
        if part in record.parts:
            continue
        record.begin(part)
        open(os.path.join(output, "log"), "a").write(f"{{name}}/{{part}} ")
        if name + "/" + part in os.environ.get("CRASH", ""):
            os._exit(9)
        if name + "/" + part in os.environ.get("BREAK", ""):
            record.end(part, dict(status="FAILED", reason="CUDA error", seconds=0.1))
            os._exit({broken})
        if name + "/" + part in os.environ.get("HANG", ""):
            time.sleep(60)
        record.end(part, dict(status="ok", ms=1.5, seconds=0.1))
    record.finish()
"""


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """gpu(*words): the exit code, the log of the parts that began, the table."""
    worker = textwrap.dedent(WORKER).format(
        benchmarks=str(BENCHMARKS), settings=SETTINGS, broken=RECORD.BROKEN
    )
    (tmp_path / "_gpu_worker.py").write_text(worker)
    monkeypatch.setattr(GPU, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    output = tmp_path / "out"

    def run(*words):
        code = GPU.main(["--small", "--device", "cpu", "--output", str(output), *words])
        log = output / "log"
        began = log.read_text().split() if log.is_file() else []
        log.unlink(missing_ok=True)
        table = output / "gpu.md"
        return code, began, table.read_text() if table.is_file() else ""

    return run


PARTS = ("first", "second", "third")
TWO = ("--slice", "environment", "--slice", "times")


def test_all_slices_run_once_and_the_results_are_in_one_table(gpu):
    code, began, table = gpu()
    assert code == 0
    assert began == [f"{name}/{part}" for name in GPU.SLICES for part in PARTS]
    lines = table.splitlines()
    assert lines[0].startswith("| slice | part | result |")
    assert lines[2] == "| environment | first | ok | ms 1.5 | 0.1 |"
    assert len(lines) == 2 + len(began)

    assert gpu()[:2] == (0, [])


def test_after_a_crash_the_part_has_failed_and_the_others_run(gpu, monkeypatch):
    monkeypatch.setenv("CRASH", "environment/second times/first")
    code, began, table = gpu(*TWO)
    assert code == 1
    assert began == [f"{name}/{part}" for name in ("environment", "times") for part in PARTS]
    assert "| environment | second | FAILED | reason its process ended with the code 9 |" in table
    assert "| times | first | FAILED |" in table
    assert table.count("| ok |") == 4


def test_after_the_device_became_unusable_the_other_parts_run(gpu, monkeypatch):
    monkeypatch.setenv("BREAK", "environment/second times/third")
    code, began, table = gpu(*TWO)
    assert code == 1
    assert began == [f"{name}/{part}" for name in ("environment", "times") for part in PARTS]
    assert "| environment | second | FAILED | reason CUDA error |" in table
    assert "| times | third | FAILED | reason CUDA error |" in table
    assert table.count("| ok |") == 4


def test_ctrl_c_ends_the_worker_and_the_command_with_one_line(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("HANG", "environment/second")
    output = tmp_path / "out"
    words = ["--small", "--device", "cpu", "--output", str(output), *TWO]
    lines = ["import pathlib, sys", f"sys.path.insert(0, {str(BENCHMARKS)!r})", "import gpu"]
    lines.append(f"gpu.BENCHMARKS = pathlib.Path({str(tmp_path)!r})")
    lines.append(f"sys.exit(gpu.command({words!r}))")
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = output / "log"
    while process.poll() is None and not (log.is_file() and "second" in log.read_text()):
        time.sleep(0.05)

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the worker gets it, too
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "stopped; the same command continues\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)

    log.unlink()
    monkeypatch.delenv("HANG")
    code, began, _ = gpu(*TWO)
    assert code == 0
    assert began[0] == "environment/second"


def test_what_is_cut_off_runs_again_and_nothing_else(gpu, monkeypatch):
    monkeypatch.setenv("HANG", "environment/second")
    code, began, table = gpu(*TWO, "--budget-seconds", "2")
    assert code == GPU.UNFINISHED
    assert began == ["environment/first", "environment/second"]
    assert "| environment | first | ok |" in table
    assert "| environment | (further parts) | not run yet |" in table

    monkeypatch.delenv("HANG")
    code, began, table = gpu(*TWO)
    assert code == 0
    assert began[0] == "environment/second"
    assert len(began) == 5
    assert "FAILED" not in table


def test_a_process_that_ends_before_its_first_part_ends_the_command(gpu, tmp_path):
    (tmp_path / "_gpu_worker.py").write_text("import sys; sys.exit(2)")
    assert gpu(*TWO)[:2] == (2, [])


def test_results_are_copied_to_the_folder_that_out_names(gpu, tmp_path, monkeypatch):
    copies = tmp_path / "copies"
    monkeypatch.setenv("OUT", str(copies))
    gpu("--slice", "times")
    assert sorted(path.name for path in copies.iterdir()) == ["gpu.md", "times.json"]
    own = json.loads((tmp_path / "out" / "times.json").read_text())
    assert json.loads((copies / "times.json").read_text()) == own
    assert own["done"]


def test_results_of_other_settings_are_not_mixed(tmp_path):
    record = RECORD.Record(tmp_path, "times", SETTINGS)
    record.finish()
    with pytest.raises(ValueError, match=r"times\.json has results of .*remove it, or give anoth"):
        RECORD.Record(tmp_path, "times", {"device": "cuda", "small": False})


def test_the_slices_are_listed(capsys):
    assert GPU.main(["--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == list(GPU.SLICES)


# The worker.


def test_a_slice_keeps_failures_and_ends_in_time(tmp_path, capsys):
    worker = module("_gpu_worker")
    part = module("_gpu_setting").Part

    def fail():
        raise RuntimeError("a kernel\nfailed | here")

    record = RECORD.Record(tmp_path, "times", SETTINGS)
    parts = [part("a", fail), part("b", lambda: {"skipped": "no GPU"}), part("c", lambda: {"x": 2})]
    with pytest.raises(SystemExit) as ended:
        worker.run_slice(record, parts, end=0.0)
    assert ended.value.code == worker.UNFINISHED == GPU.UNFINISHED
    assert not record.parts

    worker.run_slice(record, parts, end=float("inf"), text="a")
    assert list(record.parts) == ["a"]
    assert not record.is_done

    worker.run_slice(record, parts, end=float("inf"))
    again = RECORD.Record(tmp_path, "times", SETTINGS)
    assert again.is_done
    assert [result["status"] for result in again.parts.values()] == ["FAILED", "skipped", "ok"]
    assert again.parts["a"]["reason"] == "RuntimeError: a kernel failed | here"
    assert RECORD.failures(tmp_path) == ["times/a"]
    assert "a kernel failed / here" in capsys.readouterr().out


def test_a_part_waits_for_those_whose_results_it_needs(tmp_path, capsys):
    worker = module("_gpu_worker")
    part = module("_gpu_setting").Part
    record = RECORD.Record(tmp_path, "times", SETTINGS)
    parts = [part("step", lambda: {"ms": 2.0})]
    parts.append(part("ratios", lambda: {"x": record.parts["step"]["ms"] / 1.0}, ("step",)))

    worker.run_slice(record, parts, end=float("inf"), text="ratios")
    assert capsys.readouterr().out == "ratios: not run; it needs the results of: step\n"
    assert not record.parts
    assert not record.is_done

    worker.run_slice(record, parts, end=float("inf"))
    assert record.parts["ratios"]["x"] == 2.0
    assert record.is_done


def test_the_ratios_need_the_step(tmp_path):
    record = RECORD.Record(tmp_path, "times", SETTINGS)
    setting = module("_gpu_setting").Setting(torch.device("cpu"), True, tmp_path)
    parts = module("_gpu_times").times_parts(setting, record)
    (ratios,) = [part for part in parts if part.name.startswith("ratios")]
    assert ratios.after == (parts[0].name,)
    assert parts[0].name.startswith("step, ")


def test_an_error_that_breaks_the_device_ends_the_worker(tmp_path, monkeypatch):
    worker = module("_gpu_worker")
    part = module("_gpu_setting").Part
    codes = []

    def end(code):
        codes.append(code)
        raise SystemExit(code)

    def fail():
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    monkeypatch.setattr(os, "_exit", end)
    record = RECORD.Record(tmp_path, "times", SETTINGS)
    with pytest.raises(SystemExit):
        worker.run_slice(record, [part("a", fail), part("b", lambda: {})], end=float("inf"))
    assert codes == [RECORD.BROKEN]
    assert list(record.parts) == ["a"]
    assert record.running is None


def test_terms_that_are_zero_are_not_compared():
    correctness = module("_gpu_correctness")
    gradient = torch.tensor([3.0, 4.0])
    one = correctness.Terms({"loss_kd": torch.tensor(0.0)}, gradient, False)
    other = correctness.Terms({"loss_kd": torch.tensor(1e-9)}, gradient * 1.5, False)
    assert correctness.differences(other, one) == (0.0, 0.5)


def test_captured_steps_that_train_otherwise_are_found(tmp_path, monkeypatch):
    captured = module("_gpu_captured")
    setting_of = module("_gpu_setting")
    module("_gpu_data").register()

    class Wrong:
        """Steps that see the next epoch."""

        works = False

        def __init__(self, step, *others):
            self.step = step

        def __call__(self, epoch, *inputs):
            return self.step(epoch + 1, *inputs)

    monkeypatch.setattr(setting_of, "CapturedStep", Wrong)
    setting = setting_of.Setting(torch.device("cpu"), True, tmp_path)
    with pytest.raises(setting_of.CheckError, match="captured and eager steps differ"):
        captured.compare("DKD", setting)


def test_every_slice_has_parts():
    assert list(module("_gpu_worker").PARTS) == list(RECORD.SLICES)


# Packages.


def make_wheel(folder, name, tags, text):
    path = folder / f"{name}-1.0-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", text)
    return path


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path])
    needed = {"absent_here": "absent_here", "json": "json"}
    monkeypatch.setattr(PACKAGES, "NEEDED", needed)
    monkeypatch.setattr(PACKAGES, "USEFUL", {"absent_here.inner": "other"})
    return folder


def test_only_packages_that_are_absent_are_unpacked(wheels, tmp_path):
    site = tmp_path / "site"
    assert PACKAGES.bring(wheels, site) == ["absent_here"]
    make_wheel(wheels, "absent_here", "py2.py3-none-any", "NUMBER = 3")
    make_wheel(wheels, "json", "py3-none-any", "NUMBER = 4")
    assert PACKAGES.bring(wheels, site) == []
    assert [path.name for path in site.iterdir()] == ["absent_here.py"]

    code = "import absent_here; print(absent_here.NUMBER)"
    done = subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True)
    assert done.stdout == "3\n"


@pytest.mark.parametrize(
    ("tags", "fits"),
    [
        ("py3-none-any", True),
        (f"cp3{sys.version_info.minor}-cp3{sys.version_info.minor}-manylinux1_x86_64", True),
        ("cp310-abi3-manylinux2014_x86_64", True),
        (f"cp3{sys.version_info.minor}-abi3-manylinux2014_x86_64", True),
        (f"cp3{sys.version_info.minor + 1}-abi3-manylinux2014_x86_64", False),
        ("cp39-cp39-manylinux1_x86_64", False),
    ],
)
def test_wheels_for_another_python_are_not_used(wheels, tags, fits):
    path = make_wheel(wheels, "absent_here", tags, "")
    assert PACKAGES.find_wheel(wheels, "absent_here") == (path if fits else None)


def test_a_machine_without_a_package_gets_one_line(wheels, tmp_path, capsys):
    words = ["--output", str(tmp_path / "out"), "--wheels", str(wheels), "--device", "cpu"]
    assert GPU.main(words) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: absent_here: not installed here, and no wheel in")
    assert "--bundle FOLDER" in line


# The real thing.


def real(folder, *words):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--small", "--device", "cpu"]
    command += ["--output", folder, "--budget-seconds", "900", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "gpu.md").read_text()


@pytest.mark.slow
def test_the_short_form_runs_on_a_cpu(tmp_path):
    table = real(tmp_path, "--slice", "environment", "--slice", "captured")
    assert "| captured | KD | ok |" in table
    assert "identical yes" in table
    assert "the device is cpu" in table


@pytest.mark.slow
def test_all_slices_run_on_a_cpu(tmp_path):
    table = real(tmp_path)
    assert "FAILED" not in table
    results = [line.split(" | ")[2] for line in table.splitlines()[2:]]
    assert set(results) == {"ok", "skipped"}
    for part in ("losses of CRD", "resume, captured, KD", "recipe, cache full"):
        assert part in table
    assert "| processes | KD | ok | processes 2," in table
