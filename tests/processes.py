"""Commands as processes of their own: forks of a warm process, or fresh interpreters.

A fresh interpreter takes seconds to import torch; a fork starts within milliseconds. Both take one
thread, so that their bits are equal.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

TESTS = Path(__file__).resolve().parent
CHECKOUT = TESTS.parent

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(CHECKOUT)}
ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = ""

PATIENCE = 300.0
"""Seconds after which a command counts as hanging."""


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something is so; AssertionError where it is not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Command:
    """A running command, the leader of its own process group.

    Attributes:
        pid: of the process.
        files: where its standard output and standard error go.
    """

    pid: int
    files: tuple[Path, Path]

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self.files[0].read_text()

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self.files[1].read_text()

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code, negative for a signal; TimeoutError where it does not end."""
        raise NotImplementedError

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def kill_group(self, number: int) -> None:
        """Send a signal to the process and its children, as a terminal does."""
        os.killpg(self.pid, number)


class Forked(Command):
    """A command in a fork of the server."""

    def __init__(self, address: Path, request: dict) -> None:
        self.files = (Path(request["out"]), Path(request["err"]))
        self._code: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(address))
        self._stream = self._connection.makefile("rw")
        print(json.dumps(request), file=self._stream, flush=True)
        self.pid = int(self._stream.readline())

    def wait(self, timeout: float = PATIENCE) -> int:
        if self._code is None:
            self._connection.settimeout(timeout)
            try:
                self._code = int(self._stream.readline())
            finally:
                self._connection.close()
        return self._code


class Fresh(Command):
    """A command in an interpreter of its own: python tools/<name>.py."""

    def __init__(self, request: dict) -> None:
        self.files = (Path(request["out"]), Path(request["err"]))
        name, *words = request["command"]
        with open(self.files[0], "ab") as out, open(self.files[1], "ab") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(CHECKOUT / "tools" / f"{name}.py"), *words],
                env=os.environ | ENVIRONMENT | request["environment"],
                cwd=request["folder"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait(self, timeout: float = PATIENCE) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None


class Server:
    """The warm process; use it in a `with` block.

    Args:
        folder: for the socket and the outputs of commands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.short = tempfile.TemporaryDirectory(prefix="edkd")  # a socket's path must be short
        self.address = Path(self.short.name) / "socket"
        self.count = 0
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        self.short.cleanup()

    def start(
        self,
        *command: object,
        folder: Path | None = None,
        out: Path | None = None,
        fresh: bool = False,
        **environment: str,
    ) -> Command:
        """Start a command: start("train", "--cfg", ...).

        Args:
            folder: where it runs; default: a folder of this server.
            out: its standard output; default: a file.
            fresh: whether it gets an interpreter of its own.
            environment: variables for it.
        """
        self.count += 1
        number = self.count
        words = [str(word) for word in command]
        if words[0] == "train" and "--device" not in words:
            words[1:1] = ["--device", "cpu"]
        request = {
            "command": words,
            "folder": str(folder or self.folder),
            "out": str(out or self.folder / f"{number}.out"),
            "err": str(self.folder / f"{number}.err"),
            "environment": environment,
        }
        for path in (request["out"], request["err"]):
            Path(path).touch()
        if fresh:
            return Fresh(request)
        self._warm()
        return Forked(self.address, request)

    def run(
        self, *command: object, timeout: float = PATIENCE, **options: object
    ) -> tuple[int, str]:
        """Run a command to its end; returns its exit code and its standard error."""
        started = self.start(*command, **options)
        try:
            code = started.wait(timeout)
        except TimeoutError:
            with suppress(ProcessLookupError):
                started.kill_group(signal.SIGKILL)
            raise
        return code, started.err

    def _warm(self) -> None:
        """Start the warm process, once."""
        if self.process is not None:
            return
        script = str(TESTS / "fork_server.py")
        self.process = subprocess.Popen(
            [sys.executable, script, str(self.address), str(self.folder / "warm")],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", "the fork server did not start"
