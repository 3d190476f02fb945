"""Proves the GPU path on a machine with CUDA: correctness, captured steps, precision, times.

python benchmarks/gpu.py [--list] [--slice NAME ...] [--part TEXT] [--budget-seconds N]
                         [--output FOLDER] [--device DEVICE] [--small] [--wheels FOLDER]
python benchmarks/gpu.py --bundle FOLDER [--python VERSION]

It needs Python >= 3.10 and torch >= 2.11. Packages that are not installed come from a folder of
wheels, which --bundle fills on a machine with a network. Each result is kept in the output folder
as soon as it is there, so that the same command continues where the one before it ended. CIFAR-100
is used if data/cifar-100-python is there, and random images of its shape otherwise. `--small
--device cpu` runs everything in a small form on any machine.

Exit code: 0 if all parts are done, 1 if one failed, 2 if it cannot start (a package or the device
is missing, the output folder has results of other settings, the command line is wrong), 75 if the
time was too short for all, 130 after Ctrl-C; any other is that of a process that ended between two
parts.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from _gpu_packages import bring, bundle, is_installed
from _gpu_record import BROKEN, FAILED, SLICES, UNFINISHED, Record, failures, save_table, stored

BENCHMARKS = Path(__file__).resolve().parent
CHECKOUT = BENCHMARKS.parent

GRACE = 20.0
"""Seconds in which a process that is stopped may save a checkpoint."""


def command(argv: Sequence[str] | None = None) -> int:
    """`main`; Ctrl-C ends it with one line."""
    try:
        return main(argv)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and run the slices; return the exit code."""
    args = parse(argv)
    if args.list:
        for name, text in SLICES.items():
            print(f"{name:12} {text}")
        return 0
    if args.bundle:
        for name in bundle(args.bundle, args.python):
            print(name)
        return 0

    site = args.output / "packages"
    absent = bring(args.wheels, site)
    if not is_installed("torch"):
        absent.append("torch")
    if absent:
        print(
            f"error: {', '.join(absent)}: not installed here, and no wheel in {args.wheels}; "
            "'python benchmarks/gpu.py --bundle FOLDER' downloads all but torch",
            file=sys.stderr,
        )
        return 2
    return run(args, site)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Proves the GPU path on a machine with CUDA.")
    parser.add_argument("--list", action="store_true", help="print the slices and end")
    parser.add_argument(
        "--slice",
        action="append",
        choices=SLICES,
        dest="slices",
        metavar="NAME",
        help="run this one; may be repeated (default: all)",
    )
    parser.add_argument(
        "--part", default="", metavar="TEXT", help="only parts whose names contain this text"
    )
    parser.add_argument(
        "--budget-seconds",
        type=float,
        default=570.0,
        metavar="N",
        help="end after this time; the same command continues (default: 570)",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: output/gpu")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--small", action="store_true", help="few methods, small networks")
    parser.add_argument(
        "--wheels",
        type=Path,
        default=CHECKOUT / ".wheels",
        metavar="FOLDER",
        help="wheels of packages that are not installed (default: .wheels of the checkout)",
    )
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="download these wheels")
    parser.add_argument(
        "--python",
        default=f"{sys.version_info.major}.{sys.version_info.minor}",
        metavar="VERSION",
        help="of the other machine, for --bundle (default: this one)",
    )
    args = parser.parse_args(argv)
    args.slices = args.slices or list(SLICES)
    if args.output is None:
        args.output = CHECKOUT / "output" / ("gpu-small" if args.small else "gpu")
    args.output = args.output.absolute()
    return args


def run(args: argparse.Namespace, site: Path) -> int:
    """Run the slices in a process of their own, which starts again after a crash."""
    end = time.monotonic() + args.budget_seconds
    settings = {"device": args.device, "small": args.small}
    forget_cut_off(args.output)
    while True:
        code = run_worker(args, site, end)
        if code == BROKEN:
            continue
        crashed = code not in (0, UNFINISHED) and note_crash(args, settings, code)
        if not crashed:
            break

    print(f"\n{save_table(args.output)}")
    print(f"results: {args.output}")
    failed = failures(args.output)
    if failed:
        print(f"failed: {', '.join(failed)}")
    if code == UNFINISHED:
        print("the time was too short for all parts; the same command continues")
    return code or (1 if failed else 0)


def run_worker(args: argparse.Namespace, site: Path, end: float) -> int:
    """Run the parts that are left until the time ends; return the exit code."""
    seconds = end - time.monotonic()
    words = ["--output", str(args.output), "--device", args.device, "--seconds", f"{seconds:.0f}"]
    words += ["--part", args.part]
    if args.small:
        words.append("--small")
    command = [sys.executable, str(BENCHMARKS / "_gpu_worker.py"), *words, *args.slices]

    folders = [str(CHECKOUT), os.environ.get("PYTHONPATH", ""), str(site)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder),
        "PYTHONUNBUFFERED": "1",
        "WANDB_MODE": "offline",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    if args.small:  # with more threads, small tensors take many times as long on busy cores
        environment.setdefault("OMP_NUM_THREADS", "1")

    process = subprocess.Popen(command, cwd=CHECKOUT, env=environment, preexec_fn=ignore_ctrl_c)
    try:
        return process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        return UNFINISHED
    finally:
        stop(process)


def ignore_ctrl_c() -> None:
    """In the worker: Ctrl-C reaches it, too, but `stop` ends it, by a single signal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stop(process: subprocess.Popen) -> None:
    """End a process that still runs; first by a signal after which it saves."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # the latter: Ctrl-C a second time
        process.kill()
        process.wait()


def forget_cut_off(folder: Path) -> None:
    """Parts that an earlier command cut off run again; they did not fail."""
    for content in stored(folder):
        record = Record(folder, content["slice"], content["settings"])
        record.cut_off()


def note_crash(args: argparse.Namespace, settings: dict[str, object], code: int) -> bool:
    """Let the part that ran when a process ended count as failed; False where there is none."""
    for name in args.slices:
        try:
            record = Record(args.output, name, settings)
        except ValueError:
            return False
        if record.running:
            reason = f"its process ended with the code {code}"
            record.end(record.running, {"status": FAILED, "reason": reason, "seconds": 0.0})
            return True
    return False


if __name__ == "__main__":
    sys.exit(command())
