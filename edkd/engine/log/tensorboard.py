"""Curves for TensorBoard, written by tensorboardX."""

from pathlib import Path

from edkd.engine.log.background import Record, Sink


class TensorBoard(Sink):
    """Writes event files.

    Args:
        folder: of the event files.
        done_steps: steps of a resumed run that are done; later points of the earlier process are
            hidden, because their steps run again.
    """

    def __init__(self, folder: Path, done_steps: int) -> None:
        from tensorboardX import SummaryWriter

        purge_step = done_steps + 1 if done_steps else None
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def send(self, figures: Record, step: int) -> None:
        """Add a point to the curve of each figure."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write buffered points."""
        self.writer.close()
