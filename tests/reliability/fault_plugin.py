"""A plugin that sends a signal to its process at the place that the environment names.

PLACE   a key of tests/reliability/faults.py
CALL    at which call, from 1
SIGNAL  its number
GROUP   if set, the whole process group gets it
"""

import os

from tests.reliability.faults import PLACES, before_call


def die() -> None:
    """Send the signal."""
    number = int(os.environ["SIGNAL"])
    if "GROUP" in os.environ:
        os.killpg(0, number)
    else:
        os.kill(os.getpid(), number)


owner, name = PLACES[os.environ["PLACE"]]
setattr(owner, name, before_call(getattr(owner, name), int(os.environ["CALL"]), die))
