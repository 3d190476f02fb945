"""Several processes: time of a step, and what a step sends.

python benchmarks/scaling.py [--cfg FILE] [--processes N ...] [--rounds N] [KEY VALUE ...]

Each process has one thread; the batch is shared, so that two processes do the work of one. The
numbers of processes take turns. Sent bytes are those of the tensors that a process gives to
torch.distributed in a step; a ring sends about twice as many over each link.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _common import machine, say
from _stepping import stepper

from edkd import world
from edkd.commands._command_line import ArgumentParser, run_command
from edkd.engine.config.load import load_config

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cifar100" / "kd" / "res56_res20.yaml"
STEPS = 10

HEADER = (
    "| processes | step, ms | images/s | against one | messages of a step | sent, MB |",
    "|--:|--:|--:|--:|--:|--:|",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Start the processes in turn; print the table."""
    parser = ArgumentParser(description="Steps in several processes.")
    parser.add_argument("--cfg", default=str(CONFIG))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args(argv)
    cfg = load_config(args.cfg, args.opts)

    found: dict[int, list[dict[str, Any]]] = {number: [] for number in args.processes}
    for _ in range(args.rounds):
        for number, results in found.items():
            results.append(in_processes(number, args.cfg, args.opts))

    say(f"{machine(torch.device('cpu'))}, one thread a process; batch {cfg.SOLVER.BATCH_SIZE}")
    for line in (*HEADER, *rows(found, cfg.SOLVER.BATCH_SIZE)):
        say(line)


def rows(found: dict[int, list[dict[str, Any]]], batch_size: int) -> list[str]:
    """A line for each number of processes."""
    seconds = {
        number: statistics.median(each["seconds"] for each in results)
        for number, results in found.items()
    }
    first = next(iter(seconds.values()))
    lines = []
    for number, results in found.items():
        rate = batch_size / seconds[number]
        cells = [
            str(number),
            f"{1000 * seconds[number]:.1f}",
            f"{rate:.0f}",
            f"{first / seconds[number]:.2f}",
            str(results[0]["messages"]),
            f"{results[0]['bytes'] / 1e6:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def in_processes(number: int, config: str, opts: Sequence[str]) -> dict[str, Any]:
    """What the first of several processes measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(number)}
        environment |= {"MASTER_PORT": str(port)}
        command = [sys.executable, __file__, "--worker", str(out), config, *opts]
        started = [
            subprocess.Popen(command, env=environment | {"RANK": str(rank)})
            for rank in range(number)
        ]
        codes = [process.wait() for process in started]
        assert codes == [0] * number, f"the processes ended with {codes}"
        return json.loads(out.read_text())


# One of the processes.


def work(out: str, config: str, opts: Sequence[str]) -> None:
    """Measure steps; the first process writes the result."""
    device = torch.device("cpu")
    torch.set_num_threads(1)
    world.start(device, 300.0)
    cfg = load_config(config, list(opts))
    with tempfile.TemporaryDirectory() as folder:
        run = stepper(cfg, Path(folder), device)
        run(2)

        sent = Sent()
        run(1)
        sent.stop()

        world.wait()
        start = time.perf_counter()
        run(STEPS)
        seconds = (time.perf_counter() - start) / STEPS

    if world.is_first():
        result = {"seconds": seconds, "messages": sent.messages, "bytes": sent.bytes}
        Path(out).write_text(json.dumps(result))
    world.end()


class Sent:
    """Counts the messages of torch.distributed, and the bytes that this process gives to them."""

    NAMES = ("all_reduce", "all_gather", "broadcast")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self._before = {name: getattr(dist, name) for name in self.NAMES}
        for name, function in self._before.items():
            setattr(dist, name, self._counting(name, function))

    def stop(self) -> None:
        """Count no more."""
        for name, function in self._before.items():
            setattr(dist, name, function)

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            tensor = args[1] if name == "all_gather" else args[0]
            self.messages += 1
            self.bytes += tensor.numel() * tensor.element_size()
            return function(*args, **kwargs)

        return counted


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:4], sys.argv[4:])
    else:
        run_command(main)
