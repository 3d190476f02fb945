"""Finds and records the features of a classifier while it runs, with forward hooks."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from edkd.models._tokens import Block, Call, Grid, features_of, token_stages

_FIXED_SIZE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
"""Their outputs do not follow the size of the image, and need not be smaller than their inputs."""

_KEEPS_SHAPE = (nn.Dropout, nn.Softmax, nn.Identity)
"""They begin no stage, but run on attention (N,heads,T,T), which looks like a map."""


class Plan(NamedTuple):
    """The calls that give the features."""

    maps: tuple[Call, ...]
    """Their outputs are `feats`."""
    head: Call | None
    """Its input is `pooled_feat`."""
    grid: Grid | None = None
    """Of the patches, where these outputs are tokens."""

    def names(self) -> list[str]:
        """The modules to observe."""
        calls = [*self.maps, self.head] if self.head else self.maps
        return list(dict.fromkeys(call.name for call in calls))


class Recorder:
    """Records the calls of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.maps: list[Tensor] = []
        self.pooled: Tensor | None = None
        self._calls: Counter[str] = Counter()

    def finished(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Hook after the call of a module."""
        self._calls[name] += 1
        call = Call(name, self._calls[name])
        if call in self.plan.maps:
            self.maps.append(output)
        if call == self.plan.head:
            self.pooled = inputs[0]

    def features(self) -> dict[str, Any]:
        """The features of this pass."""
        return features_of(self.maps, self.pooled, self.plan.grid)


class _Map(NamedTuple):
    """The last output at a spatial resolution."""

    call: Call
    output: Tensor
    is_stage: bool
    """Whether a convolution ran at this resolution; else it is the stage before, pooled."""
    is_pooled: bool
    """Whether it began with global pooling: what follows belongs to the head."""
    is_patches: bool = False
    """Whether it is the output of the convolution that cuts an image into patches."""


class Search:
    """Observes all modules during a forward pass and finds the calls that give features.

    Feature maps are kept on a stack with falling resolution. An output that is larger than the top
    of the stack removes it: the smaller map belonged to a side branch, as squeeze-and-excitation.

    Args:
        image: the input of the network (N,3,H,W).
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.maps: list[_Map] = []
        self.head: Call | None = None
        self.pooled: Tensor | None = None
        self._calls: Counter[str] = Counter()
        self._before: list[list[_Map]] = []
        self._blocks: list[Block] = []

    def started(self, name: str, module: nn.Module, inputs: Any) -> None:
        """Hook before the call of a module."""
        if not name and inputs:  # the network's own hook may have resized the image
            self.image = inputs[0]
        self._before.append(list(self.maps))

    def finished(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Hook after the call of a module."""
        before = self._before.pop()
        self._calls[name] += 1
        call = Call(name, self._calls[name])

        if isinstance(module, nn.Linear) and inputs:
            self.head = call
            self.pooled = inputs[0]
        elif self._is_map(module, output):
            self._push(call, output, module)
            self._restore(before, output)
        elif _may_be_block(module, inputs, output):
            block = Block(call, type(module), inputs[0], output)
            self._blocks.append(block)

    def plan(self) -> Plan:
        """What later passes need to observe."""
        stages, grid = self._stages()
        calls = tuple(each.call for each in stages)
        return Plan(calls, self.head, grid)

    def features(self) -> dict[str, Any]:
        """The features of this pass."""
        stages, grid = self._stages()
        outputs = [each.output for each in stages]
        return features_of(outputs, self.pooled, grid)

    def _stages(self) -> tuple[Sequence[_Map | Block], Grid | None]:
        """The calls whose outputs are features; the grid of the patches where they are tokens."""
        stages = [each for each in self.maps if each.is_stage]
        are_patches = [each.is_patches for each in stages]
        if are_patches != [True]:
            return stages, None

        patches = stages[0].output
        return token_stages(self._blocks, patches), _size(patches)

    def _is_map(self, module: nn.Module, output: Any) -> bool:
        """Whether an output is (N,D,H,W), with H and W in the proportion of the image."""
        if not isinstance(output, Tensor) or output.dim() != 4 or self.image.dim() != 4:
            return False
        if output.shape[0] != self.image.shape[0]:
            return False
        if isinstance(module, _KEEPS_SHAPE):
            if not self.maps:
                return False
            return output.shape == self.maps[-1].output.shape
        if isinstance(module, _FIXED_SIZE) and self.maps:
            if _area(output) >= _area(self.maps[-1].output):
                return False

        height, width = _size(self.image)
        proportional = output.shape[3] * height / width
        return abs(output.shape[2] - proportional) <= 1

    def _push(self, call: Call, output: Tensor, module: nn.Module) -> None:
        """Put a map on the stack, in place of smaller ones and of the one of its size."""
        size = _size(output)
        is_conv = isinstance(module, nn.Conv2d)
        is_stage = is_conv
        is_pooled = not is_conv and self._pools_globally(module, output)

        while self.maps and _area(self.maps[-1].output) <= _area(output):
            same = self.maps.pop()
            if _size(same.output) == size:
                is_pooled = same.is_pooled
                is_stage = same.is_stage or (is_conv and not is_pooled)
        self.maps.append(_Map(call, output, is_stage, is_pooled, _cuts_patches(module)))

    def _pools_globally(self, module: nn.Module, output: Tensor) -> bool:
        """Whether an output is 1x1 after global pooling, or after a map larger than 2x2."""
        if _size(output) != (1, 1) or not self.maps:
            return False
        before = _area(self.maps[-1].output)
        return before > 4 or (isinstance(module, _FIXED_SIZE) and before > 1)

    def _restore(self, before: Sequence[_Map], output: Tensor) -> None:
        """A block that lowers the resolution does not belong to the stage before it."""
        finished = {_size(each.output): each for each in before if each.is_stage}
        for position, each in enumerate(self.maps):
            if _area(each.output) > _area(output):
                self.maps[position] = finished.get(_size(each.output), each)


@contextmanager
def hooks(
    modules: Iterable[tuple[str, nn.Module]],
    finished: Callable[..., None],
    started: Callable[..., None] | None = None,
) -> Iterator[None]:
    """Observe modules during a forward pass.

    Args:
        modules: by name.
        finished: called with name, module, inputs and output after each call.
        started: called with name, module and inputs before each call.
    """
    handles = []

    try:
        for name, module in modules:
            after = functools.partial(finished, name)
            handles.append(module.register_forward_hook(after))
            if started is not None:
                before = functools.partial(started, name)
                handles.append(module.register_forward_pre_hook(before))

        yield
    finally:
        for handle in handles:
            handle.remove()


def _may_be_block(module: nn.Module, inputs: Any, output: Any) -> bool:
    """Whether a module is more than a layer, and no mere row of modules."""
    if isinstance(module, nn.Sequential) or not inputs:
        return False
    has_parts = any(True for _ in module.children())
    return has_parts and isinstance(output, Tensor)


def _cuts_patches(module: nn.Module) -> bool:
    """Whether a module is a convolution whose windows touch and do not overlap."""
    is_conv = isinstance(module, nn.Conv2d) and module.padding in ((0, 0), "valid")
    return is_conv and module.stride == module.kernel_size and min(module.stride) > 1


def _size(feature: Tensor) -> tuple[int, int]:
    return feature.shape[2], feature.shape[3]


def _area(feature: Tensor) -> int:
    return feature.shape[2] * feature.shape[3]
