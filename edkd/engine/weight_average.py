"""The average of the students' weights over the steps, which is evaluated in their place.

B. T. Polyak, A. B. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal
on Control and Optimization, 1992; with an exponential weight as in A. Tarvainen, H. Valpola, "Mean
teachers are better role models", NeurIPS 2017.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers import Distiller
from edkd.keys import Key
from edkd.signals import hold

KEYS = {
    "SOLVER.EMA": Key(
        0.0,
        "decay of the moving average of the student's weights, which is evaluated and saved; "
        "0: off",
        low=0.0,
        high=1.0,
    ),
}

STATE = "average"
"""Key of a checkpoint."""


class WeightAverage:
    """Averages of the weights and floating-point buffers of all students.

    After step t, from 1, with d = min(decay, (1 + t) / (10 + t)):

    average = d * average + (1 - d) * weights

    The growing decay soon removes the random first weights from the average. Integer buffers are
    copied. Training continues with the weights, not with the average.

    Args:
        distiller: its `students()` are averaged.
        decay: in (0, 1).
    """

    def __init__(self, distiller: Distiller, decay: float) -> None:
        self.decay = decay
        self.live = tensors_of(distiller.students().values())

        names = distiller.state_dict(keep_vars=True)
        place = {id(tensor): number for number, tensor in enumerate(self.live)}
        self.names = {name: place[id(t)] for name, t in names.items() if id(t) in place}

        self.is_in_place = False
        self.averages = [tensor.detach().clone() for tensor in self.live]
        self.floating = [i for i, each in enumerate(self.live) if each.is_floating_point()]
        self.others = [i for i, each in enumerate(self.live) if not each.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step.

        Args:
            step: steps done since the first epoch, from 1.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [self.averages[i] for i in self.floating]
        weights = [self.live[i].detach() for i in self.floating]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for i in self.others:
            self.averages[i].copy_(self.live[i])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block, the students have the average; then they have their weights again."""
        try:
            self.give_average()
            yield
        finally:
            self.give_weights()

    def give_average(self) -> None:
        """The students get the average, until `give_weights`."""
        with hold():  # a signal between two tensors would leave a mixture
            if not self.is_in_place:
                self._swap()

    def give_weights(self) -> None:
        """The students have their own weights, whichever they had."""
        with hold():
            if self.is_in_place:
                self._swap()

    def _swap(self) -> None:
        """Exchange the weights and the average, without a copy."""
        for i, tensor in enumerate(self.live):
            tensor.data, self.averages[i] = self.averages[i], tensor.data
        self.is_in_place = not self.is_in_place

    def state_dict(self) -> dict[str, Tensor]:
        """The averages under the names of the distiller's state dict."""
        return {name: self.averages[i] for name, i in self.names.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the averages of another run.

        Raises:
            KeyError, TypeError, RuntimeError: they are not of these networks.
        """
        for name, i in self.names.items():
            self.averages[i].copy_(state[name])


def tensors_of(networks: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of some networks, each once."""
    found: dict[int, Tensor] = {}
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            found[id(tensor)] = tensor
    return list(found.values())
