"""The process of one run: `python -m edkd.sweep.child train ...` is `python -m edkd train ...`.

It also watches its standard input, of which the sweep holds the other end. When the sweep closes
it, or ends in any way, kill -9 included, the run is stopped as by SIGTERM: it saves a checkpoint.
No module of another package is imported here, as the main thread has yet to import torch.
"""

import os
import runpy
import signal
import sys
import threading
import time

GRACE = 1.0
"""Seconds after the end of the sweep in which a signal to all its processes may still arrive."""


def main() -> None:
    """Watch, and run the command of `sys.argv`."""
    threading.Thread(target=_watch, daemon=True).start()
    runpy.run_module("edkd", run_name="__main__", alter_sys=True)


def _watch() -> None:
    """Wait for the end of standard input, then stop this process where no signal has done so."""
    while os.read(0, 1):
        pass
    time.sleep(GRACE)

    from edkd.signals import exit_code

    if exit_code() is not None:  # a second signal would end the run without a checkpoint
        return
    if os.name == "nt":
        signal.raise_signal(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.argv[0] = "edkd"
    main()
