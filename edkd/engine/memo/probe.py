"""The trial step of a method that runs the teacher itself: does it read the logits alone?"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers import Distiller, prepare_batch
from edkd.engine.device import autocast
from edkd.engine.memo.stand_in import PassThrough, snapshot
from edkd.types import Batch, LazyFeatures, Output


def reason_against(
    distiller: Distiller,
    teacher: nn.Module,
    batch: Batch,
    amp: torch.dtype | None,
    device: torch.device,
) -> str:
    """Run one step of a copy of a method.

    Args:
        distiller: is not changed.
        teacher: of this method.
        batch: of the first epoch.
        amp: precision of the step; None: float32.

    Returns:
        Why cached logits of this batch do not suffice; "" if they do.
    """
    batch = prepare_batch(distiller, batch)
    with autocast(amp, device):
        trial = Trial(teacher, batch, device)
        try:
            method = copy.deepcopy(distiller, {id(teacher): trial}).train()
            method.start_epoch(1)
            method.training_step(batch)
        except Exception as error:  # a copy may fail in ways in which the method itself does not
            message = " ".join(str(error).split())[:200]
            return f"a trial step of the method failed: {type(error).__name__}: {message}"

    if trial.needs_more:
        return trial.needs_more
    return "" if trial.has_run else "a trial step of the method did not run the teacher"


class Trial(PassThrough):
    """A teacher that records what is used besides its logits for the images of a batch.

    Made within the autocast context of the step.
    """

    def __init__(self, teacher: nn.Module, batch: Batch, device: torch.device) -> None:
        super().__init__(teacher)
        self.image = snapshot(batch.image)
        self.device = device
        self.uses_autocast = torch.is_autocast_enabled(device.type)
        self.has_run = False
        self.needs_more = ""

    def forward(self, *images: Any, **options: Any) -> Any:
        """The teacher's output."""
        self.has_run = True
        is_lookup = len(images) == 1 and not options
        if not is_lookup or not self.image.matches(images[0]):
            self.needs_more = "the method runs the teacher on other images than those of the batch"
        elif torch.is_autocast_enabled(self.device.type) != self.uses_autocast:
            self.needs_more = "the method runs the teacher in another precision"

        logits, features = self.teacher(*images, **options)
        if self.needs_more:
            return logits, features
        return Output(logits, LazyFeatures(lambda: self.features(images[0])))

    def features(self, image: Tensor) -> Any:
        """Record that features are read."""
        self.needs_more = "the method reads the teacher's features"
        _, features = self.teacher(image)
        return features

    def teacher_attribute(self, name: str) -> Any:
        """Record that an attribute is read."""
        self.needs_more = self.needs_more or f"the method reads the teacher's attribute {name}"
        return super().teacher_attribute(name)
