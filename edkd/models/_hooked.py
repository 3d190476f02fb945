"""Any classifier under the contract of `Network`: its features are recorded while it runs."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edkd.errors import UserError
from edkd.models._base import Network

_FIXED_SIZE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def as_network(module: nn.Module) -> nn.Module:
    """Bring a classifier under the contract of `Network`.

    Args:
        module: its forward maps images (N,3,H,W) to logits (N,C), or to (logits, features).

    Returns:
        A module with `forward(x) -> (logits, features)`, see `HookedNetwork`. A network of this
        package is returned as it is.

    Raises:
        UserError: it is not a module. Its forward raises UserError if it returns anything else.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"a network must be a torch.nn.Module, not {type(module).__name__}")
    if isinstance(module, (Network, HookedNetwork)):
        return module
    return HookedNetwork(module)


class HookedNetwork(nn.Module):
    """A classifier whose features are recorded while it runs.

    `forward(x: (N,3,H,W)) -> (logits (N,C), features)`, where features is a dictionary:
        feats: list of (N,D,H,W), the last feature map at each spatial resolution, in order;
        preact_feats: empty;
        pooled_feat: (N,D), the input of the last `nn.Linear` that runs; without one, the mean over
            H and W of the last feature map.

    If the module itself returns (logits, features), they are passed through. Attributes and the
    state dict are the module's own, so saved weights have its keys. Hooks exist only during a
    forward pass. The first pass for each image shape observes all layers, later ones those whose
    output is a feature.

    Args:
        module: the classifier, which stays reachable as `.module`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._plans: dict[tuple[Any, ...], _Plan] = {}

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        if _is_compiled(self.module):
            return self._checked(self.module(x), {"feats": []})

        # Find out what to observe.
        case = (*x.shape[1:], self.module.training)
        plan = self._plans.get(case)
        observed = self.module.named_modules() if plan is None else self._find(plan)

        # Run.
        recorder = _Recorder(x, observed)
        with recorder:
            output = self.module(x)

        # Keep what later passes need to observe.
        if plan is None:
            plan = recorder.plan()
            if isinstance(output, tuple):
                plan = _Plan((), frozenset())
            self._plans[case] = plan
        return self._checked(output, recorder.features(plan))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own state dict."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the module's own state dict."""
        return self.module.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Within the state dict of a larger module: hand the keys on to the wrapped module."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}module.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the wrapped module, as `get_stage_channels`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module" or name.startswith("__"):  # being copied or unpickled
                raise
        return getattr(self.module, name)

    def _find(self, plan: "_Plan") -> list[tuple[str, nn.Module]]:
        return [(name, self.module.get_submodule(name)) for name in plan.names]

    def _checked(self, output: Any, recorded: dict[str, Any]) -> tuple[Tensor, Any]:
        """Logits and features; UserError if the module returned anything else."""
        name = type(self.module).__name__
        if isinstance(output, tuple) and len(output) == 2:
            logits, features = output
            if isinstance(logits, Tensor) and isinstance(features, Mapping):
                return logits, features

        if isinstance(output, Tensor) and output.dim() == 2:
            return output, _Features(name, recorded)
        raise UserError(
            f"{name} returned {_describe(output)}, but a network must return logits (N,C) or "
            "(logits, features); wrap it in a module that does"
        )


class _Features(dict[str, Any]):
    """Recorded features. Reading an absent one is an error of the user."""

    def __init__(self, network: str, recorded: dict[str, Any]) -> None:
        super().__init__({"feats": [], "preact_feats": []} | recorded)
        self.network = network

    def __missing__(self, name: str) -> Any:
        raise UserError(
            f"{self.network} has no {name}: no nn.Linear or feature map was found in it; use a "
            "method that reads logits alone, or return (logits, features) from its forward"
        )


class _Plan(NamedTuple):
    """What a forward pass needs to observe."""

    names: tuple[str, ...]
    """Of the modules whose outputs or inputs become features."""
    sizes: frozenset[tuple[int, int]]
    """(H,W) of the feature maps."""


class _Map(NamedTuple):
    """The last output at a spatial resolution."""

    name: str
    """Of the module."""
    output: Tensor
    is_stage: bool
    """Whether a convolution ran at this resolution; else it is the pooled stage before."""


class _Recorder:
    """Observes modules during a forward pass.

    Feature maps are kept on a stack with falling resolution. An output that is larger than the top
    of the stack removes it: the smaller map belonged to a side branch, as squeeze-and-excitation.

    Args:
        image: the input of the network (N,3,H,W).
        modules: what to observe, by name.
    """

    def __init__(self, image: Tensor, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self.image = image
        self.modules = list(modules)
        self.maps: list[_Map] = []
        self.head: str | None = None
        self.pooled: Tensor | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self.modules:
            hook = module.register_forward_hook(self._hook(name))
            self._hooks.append(hook)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def plan(self) -> _Plan:
        """What the next pass for such images needs to observe; all modules were observed now."""
        stages = [each for each in self.maps if each.is_stage]
        names = [each.name for each in stages]
        if self.head is not None:
            names.append(self.head)

        sizes = frozenset(_size(each.output) for each in stages)
        return _Plan(tuple(dict.fromkeys(names)), sizes)

    def features(self, plan: _Plan) -> dict[str, Any]:
        """The features of this pass; without `pooled_feat` if nothing was found for it."""
        feats = [each.output for each in self.maps if _size(each.output) in plan.sizes]
        if self.pooled is not None:
            return {"feats": feats, "pooled_feat": self.pooled.flatten(1)}
        if feats:
            return {"feats": feats, "pooled_feat": feats[-1].mean((2, 3))}
        return {"feats": feats}

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.Linear):
                self.head = name
                self.pooled = inputs[0]
            elif self._is_map(module, output):
                self._add_map(name, module, output)

        return record

    def _is_map(self, module: nn.Module, output: Any) -> bool:
        """Whether an output is (N,D,H,W), with H and W in the proportion of the image.

        Pooling to a fixed size belongs to the head.
        """
        if not isinstance(output, Tensor) or isinstance(module, _FIXED_SIZE):
            return False
        if output.dim() != 4 or self.image.dim() != 4:
            return False

        height, width = _size(self.image)
        proportional = output.shape[3] * height / width
        return abs(output.shape[2] - proportional) <= 1

    def _add_map(self, name: str, module: nn.Module, output: Tensor) -> None:
        is_stage = isinstance(module, nn.Conv2d)
        size = _size(output)

        while self.maps and _area(self.maps[-1].output) <= _area(output):
            before = self.maps.pop()
            # Convolutions after global pooling belong to the head.
            if _size(before.output) == size:
                is_stage = before.is_stage or (is_stage and size != (1, 1))
        self.maps.append(_Map(name, output, is_stage))


def _size(feature: Tensor) -> tuple[int, int]:
    return feature.shape[2], feature.shape[3]


def _area(feature: Tensor) -> int:
    return feature.shape[2] * feature.shape[3]


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module ignores hooks of its children: TorchScript, or `torch.compile`."""
    return isinstance(module, torch.jit.ScriptModule) or "_orig_mod" in module._modules


def _describe(output: Any) -> str:
    """The kind of an output, with the shape of a tensor, for messages."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return type(output).__name__
