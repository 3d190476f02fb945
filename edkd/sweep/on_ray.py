"""Running a sweep on a Ray cluster: each run is a task, which starts the same process as here.

Ray decides where and when a run starts, and starts it again where its machine or worker is lost.
"""

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from edkd.engine.checkpoint import save_bytes, save_text
from edkd.errors import UserError, reason_of, warn
from edkd.results.runs import RESULT
from edkd.signals import SIGNALS, Stopped, hold
from edkd.sweep.file import Resources
from edkd.sweep.job import Outcome
from edkd.sweep.plan import Planned
from edkd.sweep.ray_task import MARK, Done, Failed, run_task
from edkd.sweep.running import Progress

LOCAL = "local"
"""The address for a Ray that is started for the sweep."""

CONNECT = 12.0
"""Seconds in which a cluster must answer."""

STOP = 60.0
"""Seconds in which runs that are stopped save a checkpoint."""

_POLL = 1.0
"""Seconds between two looks for a signal."""

_OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory for results, on a Ray of our own."""

_QUIET = {"log_to_driver": False, "logging_level": "CRITICAL"}

_PROBE = f"""
import sys, ray
try:
    ray.init(sys.argv[1], **{_QUIET})
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""
"""Connects in a process that can be ended: a cluster that does not answer holds up Ray itself."""

_NO_TOKEN = "; the cluster needs a token: set RAY_AUTH_MODE=token, see the documentation of Ray"


@contextmanager
def connected(address: str, resources: Resources) -> Iterator[None]:
    """A connection to a cluster with enough resources for a run.

    Args:
        address: auto, local, HOST:PORT or ray://HOST:PORT.
        resources: of a run.

    Raises:
        UserError: Ray is not installed, the cluster does not answer, or the file of the sweep does
            not say whether a run needs a GPU.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a line of advice
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray; install it: pip install 'edkd[ray]'") from None

    if address != LOCAL:
        _probe(address)
    _connect(ray, address)
    try:
        _check_resources(ray, resources)
        yield
    finally:
        ray.shutdown()


def run_on_ray(progress: Progress) -> None:
    """Submit all open runs, and wait for them. A run starts when those that it needs have ended."""
    import ray

    with hold():
        submitted = _submit(ray, progress)
        progress.say(f"submitted: {len(submitted)}; each occupies {_shown(progress)}")

    try:
        while submitted:
            with hold():  # an exception within Ray's own code would be lost
                _collect_ended(ray, submitted, progress)
    except Stopped:
        _cancel(ray, list(submitted))
        raise


# Connecting.


def _probe(address: str) -> None:
    """Connect from a process of its own; raise UserError where this fails."""
    command = [sys.executable, "-c", _PROBE, address]
    reason = f"no answer within {CONNECT:g} s"
    printed = b""
    try:
        _check_port(address)
        done = subprocess.run(command, capture_output=True, timeout=CONNECT)
        if done.returncode == 0:
            return
        printed = done.stderr
        *_, reason = ["it ended", *printed.decode(errors="replace").split("\n")[:-1]]
    except subprocess.TimeoutExpired as error:
        printed = error.stderr or b""
    except OSError as error:
        reason = reason_of(error)

    token = _NO_TOKEN if b"Unauthenticated" in printed else ""
    raise UserError(
        f"--ray {address}: cannot connect to a Ray cluster ({reason}){token}; check the address, "
        "or start Ray with 'ray start --head'; --ray local needs no cluster"
    )


def _check_port(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()


def _connect(ray: Any, address: str) -> None:
    """Connect this process, and keep its reactions to signals, which Ray replaces."""
    own: dict[str, Any] = {}
    if address == LOCAL:
        own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}

    with hold():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            ray.init(address, **own, **_QUIET)
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split())
            raise UserError(f"--ray {address}: cannot connect ({reason})") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)


def _check_resources(ray: Any, resources: Resources) -> None:
    """Raise UserError where a GPU may have been forgotten; warn where no machine has enough."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus and resources.gpus is None:
        raise UserError(
            f"the cluster has {gpus:g} GPUs, and the sweep does not say what a run gets of them; "
            "add resources: {gpus: 1} to its file, or {gpus: 0} to train on CPUs"
        )

    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    needed = {"GPU": resources.gpus or 0, "CPU": resources.cpus}
    if not any(all(m.get(k, 0) >= needed[k] for k in needed) for m in machines):
        warn(
            f"no machine of the Ray cluster has {needed['GPU']:g} GPUs and {needed['CPU']:g} CPUs: "
            "the runs wait until one joins"
        )


# Tasks.


def _submit(ray: Any, progress: Progress) -> dict[Any, Planned]:
    """Submit a task for each open run; return the runs by their tasks."""
    resources = progress.sweep.resources
    task = ray.remote(run_task).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus or 0,
        max_retries=progress.sweep.retries,
        retry_exceptions=[Failed],
    )
    environment = {} if resources.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    token = uuid.uuid4().hex
    save_text(token, progress.sweep.folder / MARK)

    submitted: dict[int, Any] = {}
    for run in progress.sweep.runs:
        if progress.is_open(run):
            job = progress.job(run)._replace(environment=environment, token=token)
            needed = [submitted[number] for number in run.needs if number in submitted]
            submitted[run.number] = task.remote(job, *needed)
    return {submitted[run.number]: run for run in progress.sweep.runs if run.number in submitted}


def _shown(progress: Progress) -> str:
    resources = progress.sweep.resources
    return f"{resources.cpus:g} CPUs and {resources.gpus or 0:g} GPUs"


def _collect_ended(ray: Any, submitted: dict[Any, Planned], progress: Progress) -> None:
    """Take the results of tasks that have ended, and drop them, so that Ray frees their memory."""
    ended, _ = ray.wait(list(submitted), timeout=_POLL)
    for task in ended:
        _collect(ray, task, submitted.pop(task), progress)


def _collect(ray: Any, task: Any, run: Planned, progress: Progress) -> None:
    """Take the result of a task that has ended."""
    try:
        done: Done = ray.get(task)
    except ray.exceptions.RayError as error:
        progress.ended(run, _failure(error), "")
        return

    _write_files(run, done)
    about = f"{done.seconds:.0f} s on {done.machine}"
    progress.ended(run, done.outcome, f"{about}, resumed" if done.resumed else about)


def _failure(error: Any) -> Outcome:
    """The outcome of a task that failed in all its attempts."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Failed):
        return Outcome(*cause.args)
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else ""
    return Outcome(1, f"{type(error).__name__}: {first}")


def _write_files(run: Planned, done: Done) -> None:
    """Write the files of a run on a machine that does not share its folder with this one."""
    if not done.files or (run.folder / RESULT).is_file():
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(done.files, key=lambda name: name == RESULT):  # the result comes last
        save_bytes(done.files[name], run.folder / name)


def _cancel(ray: Any, tasks: Sequence[Any]) -> None:
    """Stop tasks; those that run save a checkpoint."""
    for task in tasks:
        with suppress(Exception):  # it has just ended, or the cluster has
            ray.cancel(task)
    with suppress(Exception):
        ray.wait(list(tasks), num_returns=len(tasks), timeout=STOP)
