"""The process of `benchmarks/gpu.py` that runs the slices: their parts, one after the other.

python benchmarks/_gpu_worker.py --output FOLDER --device DEVICE --seconds N [--part TEXT]
                                 [--small] SLICE ...
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import say
from _gpu_captured import captured_parts
from _gpu_correctness import correctness_parts
from _gpu_environment import environment_parts
from _gpu_precision import precision_parts
from _gpu_processes import processes_parts
from _gpu_record import BROKEN, FAILED, OK, SKIPPED, UNFINISHED, Record, row, save_table
from _gpu_setting import Part, Setting
from _gpu_times import times_parts

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.engine.device import pick_device
from edkd.errors import UserError

PARTS: Mapping[str, Callable[[Setting, Record], list[Part]]] = {
    "environment": environment_parts,
    "correctness": correctness_parts,
    "captured": captured_parts,
    "precision": precision_parts,
    "times": times_parts,
    "processes": processes_parts,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run all parts that have no result."""
    parser = ArgumentParser(description="The slices of benchmarks/gpu.py.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--part", default="")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("slices", nargs="+", choices=PARTS)
    args = parser.parse_args(argv)

    end = time.monotonic() + args.seconds
    setting = Setting(pick_device(args.device), args.small, args.output / "work")
    settings = {"device": args.device, "small": args.small}
    for name in args.slices:
        try:
            record = Record(args.output, name, settings)
        except ValueError as error:
            raise UserError(str(error)) from None
        if not record.is_done:
            run_slice(record, PARTS[name](setting, record), end, args.part)
            save_table(args.output)


def run_slice(record: Record, parts: Sequence[Part], end: float, text: str = "") -> None:
    """Run the parts that have no result.

    Args:
        end: no part begins after this moment, as of `time.monotonic`.
        text: only parts whose names contain it.
    """
    for part in parts:
        if part.name in record.parts or text not in part.name:
            continue
        missing = [name for name in part.after if name not in record.parts]
        if missing:
            say(f"{part.name}: not run; it needs the results of: {'; '.join(missing)}")
            continue
        if time.monotonic() > end:
            sys.exit(UNFINISHED)

        record.begin(part.name)
        result = result_of(part)
        record.end(part.name, result)
        say(row(record.content["slice"], part.name, result))
        if result["status"] == FAILED:
            check_device()

    if all(part.name in record.parts for part in parts):
        record.finish()


def result_of(part: Part) -> dict[str, Any]:
    """The figures of a part, with its status and its time."""
    start = time.perf_counter()
    try:
        figures = dict(part.run())
        status = SKIPPED if "skipped" in figures else OK
    except Exception as error:  # the other parts run all the same
        status = FAILED
        reason = " ".join(str(error).split())[:300]
        figures = {"reason": f"{type(error).__name__}: {reason}"}

    seconds = time.perf_counter() - start
    return {"status": status, **figures, "seconds": seconds}


def check_device() -> None:
    """End the process where its CUDA context is unusable; another one runs the other parts."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError:
        sys.stdout.flush()
        os._exit(BROKEN)  # an ordinary exit uses the device once more, and may abort


if __name__ == "__main__":
    run_command(main)
