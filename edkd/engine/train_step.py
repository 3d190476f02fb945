"""A training step: batch, forward, backward, update."""

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from edkd import world
from edkd.dataset import DataSet
from edkd.distillers import Distiller, check_first_terms, check_terms, explained, prepare_batch
from edkd.engine.accumulate import add_up, joined, split, weighted
from edkd.engine.device import autocast
from edkd.engine.memo.cache import TeacherCache
from edkd.engine.update import Losses, Update
from edkd.errors import UserError, batch_norm_explained
from edkd.shared_layers import shared
from edkd.types import Batch


class TrainStep:
    """A training step of a distiller.

    Args:
        cfg: the configuration.
        distiller: on the device.
        data: its batches are made on the device.
        update: the update rule of the distiller's parameters.
        amp: the precision; None: float32.
        device: of all of these.
    """

    def __init__(
        self,
        cfg: Any,
        distiller: Distiller,
        data: DataSet,
        update: Update,
        amp: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.cfg = cfg
        self.distiller = distiller
        self.data = data
        self.update = update
        self.amp = amp
        self.device = device
        self.cache: TeacherCache | None = None
        self.terms_are_checked = False

    def __call__(self, epoch: int | Tensor, *inputs: Tensor) -> tuple[Losses, Tensor, Tensor]:
        """Batch, forward, backward, update.

        It runs on the device alone, from tensors to tensors: nothing waits for the device.

        Returns:
            The terms of the loss and their sum, the logits, the targets.
        """
        batch = self.batch(epoch, *inputs)

        total: Losses = {}
        first_logits = None
        for turn in range(self.distiller.turns):
            losses, logits = self.backward(batch, turn)
            self.update.step(
                losses,
                recompute=functools.partial(self.recompute, batch, turn),
                ends_step=turn + 1 == self.distiller.turns,
            )
            for name, loss in losses.items():
                total[name] = total.get(name, 0.0) + loss.detach()
            first_logits = logits.detach() if first_logits is None else first_logits

        assert first_logits is not None
        return total, first_logits, batch.target

    def batch(self, epoch: int | Tensor, *inputs: Tensor) -> Batch:
        """The batch of a step, as the method gets it."""
        batch = dataclasses.replace(self.data.train.batch(*inputs), epoch=epoch)
        return prepare_batch(self.distiller, batch)

    def backward(self, batch: Batch, turn: int) -> tuple[Losses, Tensor]:
        """Gradients of a batch, which runs in SOLVER.ACCUMULATE parts; its losses and logits."""
        all_losses: list[Losses] = []
        all_logits: list[Tensor] = []
        for part in split(batch, self.cfg.SOLVER.ACCUMULATE):
            if self.cache and turn == 0:
                self.cache.expect(part)
            losses, logits = self.forward(part, turn)
            losses = weighted(losses, part, batch)
            self.update.backward(self.of_share(losses, batch))
            all_losses.append(losses)
            all_logits.append(logits)
        return add_up(all_losses), joined(all_logits)

    def forward(self, batch: Batch, turn: int = 0) -> tuple[Losses, Tensor]:
        """The terms of the loss and "loss", their sum; the logits."""
        has_new_targets = batch.target.is_floating_point() and not self.terms_are_checked
        with (
            shared(batch.counts, self.cfg.SOLVER.SYNC_BATCH_NORM),
            autocast(self.amp, self.device),
            explained(type(self.distiller), has_new_targets),
            batch_norm_explained(),
        ):
            result = self.distiller.training_step(batch, turn)
        logits, terms = check_terms(self.distiller, result)
        if not self.terms_are_checked:
            world.agree({"terms of the loss": sorted(terms)})
            check_first_terms(self.distiller, terms)
            self.update.check_terms(terms)
            self.terms_are_checked = True

        losses = {name: loss.mean() for name, loss in terms.items()}
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses, logits

    def recompute(self, batch: Batch, turn: int) -> Losses:
        """The losses of a batch with the present weights, for update rules that need them again.

        Raises:
            UserError: the batch runs in parts.
        """
        if self.cfg.SOLVER.ACCUMULATE > 1:
            raise UserError(
                f"SOLVER.TRAINER {self.cfg.SOLVER.TRAINER} computes the loss of a batch again and "
                "cannot run it in parts; set SOLVER.ACCUMULATE 1"
            )
        losses, _ = self.forward(batch, turn)
        return self.of_share(losses, batch)

    def of_share(self, losses: Losses, batch: Batch) -> Losses:
        """Losses whose mean over the processes is that of the whole batch."""
        if not batch.counts or self.distiller.relates_images():
            return losses
        weight = world.weight_of(batch.counts)
        return {name: weight * loss for name, loss in losses.items()}

    def own_count(self, target: Tensor) -> int:
        """Images of this process in the present batch that count."""
        return world.own_count(self.data.train.counts, len(target))
