"""The base of modules that wrap a network and have its interface."""

from typing import Any

from torch import nn


class Wrapper(nn.Module):
    """A module whose attributes and state dict are those of the wrapped one.

    Args:
        module: stays reachable as `.module`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own state dict."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the module's own state dict."""
        return self.module.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """As part of a larger module: pass the keys on to the wrapped module."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            inner = f"{prefix}module.{key.removeprefix(prefix)}"
            state_dict[inner] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the wrapped module, as `get_stage_channels`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # These are looked up while a module is copied or unpickled, before it has children.
            if name == "module" or name.startswith("__"):
                raise
        return getattr(self.module, name)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network within its wrappers."""
    while isinstance(network, Wrapper):
        network = network.module
    return network
