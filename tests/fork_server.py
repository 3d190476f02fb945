"""A process that has imported torch and edkd; it runs each command in a fork of itself.

Started by tests/processes.py, which has the other end. A command thus starts within milliseconds,
not seconds, and is a process of its own, in a session of its own, for signals to end.

  python tests/fork_server.py SOCKET FOLDER
"""

import atexit
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path


def main() -> None:
    """Accept requests as long as the parent process lives."""
    address, folder = sys.argv[1:]
    parent = os.getppid()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.fsync = lambda handle: None  # only a loss of power could reveal it
    warm_up(Path(folder))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the supervisors
        listener.settimeout(2)
        print("ready", flush=True)
        while os.getppid() == parent:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                supervise(connection)
            connection.close()


def warm_up(folder: Path) -> None:
    """Import everything that a run imports, by a run."""
    from edkd.commands._command_line import run_command
    from edkd.commands.train import main

    plugin = Path(__file__).with_name("tiny_data.py")
    words = ["--plugin", str(plugin), "--device", "cpu", "DATASET.TYPE", "tiny"]
    words += ["DISTILLER.STUDENT", "narrow", "SOLVER.EPOCHS", "1", "SOLVER.AMP", "off"]
    words += ["LOG.WANDB", "False", "LOG.PREFIX", str(folder)]
    with redirect_stdout(StringIO()):
        run_command(main, words)


def supervise(connection: socket.socket) -> None:
    """Run a command in a child process; report its process id and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection, connection.makefile("rw") as stream:
        request = json.loads(stream.readline())
        child = os.fork()
        if child == 0:
            run(request)
        print(child, file=stream, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=stream, flush=True)
    os._exit(0)


def run(request: dict) -> None:
    """The command, as in a fresh interpreter; it does not return."""
    os.setsid()
    redirect(0, "/dev/null", os.O_RDONLY)
    redirect(1, request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    redirect(2, request["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    for number in os.environ.get("CLOSED", ""):
        close(int(number))
    name, *words = request["command"]
    sys.argv = [f"tools/{name}.py", *words]

    code = 1
    try:
        execute(name, words)
        code = 0
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
    leave(code)


def redirect(number: int, path: str, flags: int) -> None:
    """Open a file as a standard stream."""
    handle = os.open(path, flags, 0o600)
    os.dup2(handle, number)
    os.close(handle)


def close(number: int) -> None:
    """Close a standard stream, as `>&-` of a shell does before the interpreter starts."""
    os.close(number)
    setattr(sys, ("stdin", "stdout", "stderr")[number], None)


def execute(name: str, words: list[str]) -> None:
    """What tools/<name>.py does."""
    from edkd.commands._command_line import run_command

    run_command(importlib.import_module(f"edkd.commands.{name}").main, words)


def leave(code: int) -> None:
    """End as an interpreter does, but do not free its modules, which takes a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
