"""Any classifier under the contract of `Network`: its features are recorded while it runs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edkd.errors import UserError
from edkd.models._base import Network
from edkd.models._recording import Plan, Recorder, Search, hooks
from edkd.models._wrapping import Wrapper


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
    if isinstance(module, (Network, Wrapper)):
        return module
    return HookedNetwork(module)


class HookedNetwork(Wrapper):
    """A classifier whose features are recorded while it runs.

    `forward(x: (N,3,H,W)) -> (logits (N,C), features)`, where features is a dictionary:
        feats: list of (N,D,H,W), the last feature map at each spatial resolution, in order. Those
            of a transformer are the tokens of its patches, see `token_stages`. A network without
            stages has none, and reading one raises UserError;
        tokens: of transformers alone, the same as lists of (N,T,D), class tokens first;
        preact_feats: empty;
        pooled_feat: (N,D), the input of the last `nn.Linear` that runs; without one, the mean over
            H and W of the last feature map;
        logits_dist: (N,C), those of the distillation token, where the module returns both in
            training, as timm's do after `set_distilled_training(True)`.

    If the module itself returns (logits, features), they are passed through. Attributes and the
    state dict are the module's own, so saved weights have its keys. Hooks exist only during a
    forward pass. The first pass for each image shape observes all layers, later ones those whose
    output is a feature.

    Args:
        module: the classifier, which stays reachable as `.module`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """Logits (N,C) and features for images (N,3,H,W).

        Raises:
            UserError: the module returned neither logits nor (logits, features).
        """
        case = (*x.shape[1:], self.module.training)
        plan = self._plans.get(case)

        # The first such images: find the features.
        if plan is None:
            search = Search(x)
            modules = self.module.named_modules() if _takes_hooks(self.module) else ()
            with hooks(modules, search.finished, search.started):
                output = self.module(x)
            is_plain = isinstance(output, Tensor) or _has_both_logits(self.module, output)
            plan = search.plan() if is_plain else Plan((), None)
            self._plans[case] = plan
            return self._checked(output, search.features())

        # Later: observe only the modules that give them.
        recorder = Recorder(plan)
        observed = [(name, self.module.get_submodule(name)) for name in plan.names()]
        with hooks(observed, recorder.finished):
            output = self.module(x)
        return self._checked(output, recorder.features())

    def _checked(self, output: Any, recorded: dict[str, Any]) -> tuple[Tensor, Any]:
        """Logits and features; UserError if the module returned anything else."""
        name = type(self.module).__name__
        if isinstance(output, tuple) and len(output) == 2:
            logits, features = output
            if isinstance(logits, Tensor) and isinstance(features, Mapping):
                return logits, features

        if isinstance(output, Tensor) and output.dim() == 2:
            return output, _Features(name, recorded)
        if _has_both_logits(self.module, output):
            logits, logits_dist = output
            return logits, _Features(name, recorded | {"logits_dist": logits_dist})
        raise UserError(
            f"{name} returned {_describe(output)}, but a network must return logits (N,C) or "
            "(logits, features); wrap it in a module that does"
        )


class _Features(dict[str, Any]):
    """Recorded features. Reading an absent one is an error of the user."""

    def __init__(self, network: str, recorded: dict[str, Any]) -> None:
        super().__init__({"preact_feats": []} | recorded)
        self.network = network
        if not self.get("feats"):
            self["feats"] = _NoStages(network)

    def __missing__(self, name: str) -> Any:
        raise UserError(
            f"{self.network} has no {name}: no nn.Linear or feature map was found in it; use a "
            "method that reads logits alone, or return (logits, features) from its forward"
        )


class _NoStages(list[Tensor]):
    """An empty list of feature maps. Reading one is an error of the user."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network = network

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return self
        raise UserError(
            f"{self.network} has no stages and so no feature maps; use a method that reads logits "
            "or pooled features, or another network"
        )


def _takes_hooks(module: nn.Module) -> bool:
    """False for TorchScript and `torch.compile`, whose inner modules do not run hooks."""
    is_compiled = "_orig_mod" in module._modules
    return not (is_compiled or isinstance(module, torch.jit.ScriptModule))


def _has_both_logits(module: nn.Module, output: Any) -> bool:
    """Whether an output is the logits of the class token and of the distillation token."""
    if not isinstance(output, tuple) or len(output) != 2:
        return False
    if not all(isinstance(each, Tensor) and each.dim() == 2 for each in output):
        return False
    return any(getattr(part, "distilled_training", False) for part in module.modules())


def _describe(output: Any) -> str:
    """The kind of an output, with the shape of a tensor, for messages."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return type(output).__name__
