"""Rows of the teacher cache that some of several processes have, for all of them."""

import numpy as np
import torch

from edkd import world

PART = 2**26
"""Bytes of rows in one message."""


def exchange_rows(rows: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Complete the rows of this process with those that another one has.

    Args:
        rows: (K,num_bytes), uint8; those not found may hold anything.
        found: (K,), bool.

    Returns:
        The same of all processes together.
    """
    if world.size() == 1:
        return rows, found

    # Which process has which row, (R,K).
    own = torch.from_numpy(found.astype(np.uint8))
    has = world.gather(own).numpy().astype(bool)
    number = has.sum(0)
    is_somewhere = number > 0
    is_missing = is_somewhere & (number < len(has))

    # A row comes from the first process that has it; the others add zeros.
    rows = rows.copy()
    is_sent = has.argmax(0) == world.rank()
    for places in _parts(np.flatnonzero(is_missing), rows.shape[1]):
        sent = is_sent[places]
        part = torch.from_numpy(rows[places] * sent[:, None])
        rows[places] = world.add_up(part).numpy()
    return rows, is_somewhere


def _parts(places: np.ndarray, row_bytes: int) -> list[np.ndarray]:
    """Places of rows, in parts of at most PART bytes."""
    number = -(-len(places) * row_bytes // PART)
    return np.array_split(places, number) if number else []
