"""Loading weights into a network, from the files of this package and of other training scripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.file_facts import Facts, Use, check_classes, facts_of, note_facts, suggestion
from edkd.engine.finding import Advice, found_in
from edkd.engine.matching import Match, is_counter
from edkd.errors import UserError
from edkd.models import is_qualified, unwrapped

_PLAIN_TYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
)


def load_weights(
    model: nn.Module,
    path: Path | str,
    use: Use | None = None,
    content: dict[str, Any] | None = None,
) -> Facts:
    """Load a checkpoint into a model with the same keys and shapes.

    The weights may be in nested dictionaries and have a prefix, as "state_dict" or "module.". Files
    from before 2018 lack the batch norms' counters of batches, which are not used here.

    Args:
        model: its weights are replaced; where an error is raised, they stay.
        path: a file, see `load_checkpoint`; only for messages where the content is given.
        use: what the network is loaded for; its classes are compared.
        content: of that file, where it was read already.

    Returns:
        What the file says about its network.

    Raises:
        UserError: the file cannot be read (see `load_checkpoint`), its weights are not finite, or
            they belong to another architecture, number of classes or set of classes.
    """
    use = use or Use()
    content = content or load_checkpoint(Path(path))
    facts = facts_of(content)
    check_classes(path, facts, use)

    wanted = _tensors(model)
    names_other = is_qualified(facts.architecture) and facts.architecture != use.model
    advice = Advice(use, suggestion(facts, use), names_other)
    match = found_in(path, content, wanted, advice, _unused(model))
    _load(model, path, match, wanted)
    note_facts(model, facts)
    return facts


def load_first_weights(
    model: nn.Module, path: Path | str, use: Use, content: dict[str, Any], num_classes: int
) -> list[str]:
    """Load weights to train on; where the file has a head for other classes, it is a new one.

    New weights are drawn from N(0, 0.01^2), and biases are 0, so that training starts from equal
    probabilities. Libraries' own values can be so large that the first epochs are lost.

    Args:
        model: its weights are replaced.
        path: of the file, for messages.
        use: names the model.
        content: of the file.
        num_classes: of the model.

    Returns:
        A line for the log where the head is new, or none.

    Raises:
        UserError: as `load_weights`; a head for other classes is allowed.
    """
    wanted = _tensors(model)
    advice = Advice(use, suggestion(facts_of(content), use))
    match = found_in(path, content, wanted, advice, _unused(model), num_classes)
    _load(model, path, match, wanted)

    head = [name for name in wanted if name not in match.weights and not is_counter(name)]
    if not head:
        return []
    network = unwrapped(model)
    _init_head([network.get_parameter(name) for name in head])
    return [
        f"{use.model} starts from {path} with a new head for {num_classes} classes: "
        f"{', '.join(head)} are not loaded"
    ]


@torch.no_grad()
def _init_head(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.01)
        else:
            nn.init.zeros_(parameter)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _unused(model: nn.Module) -> Sequence[str]:
    """Beginnings of names that a file may have and the model does not use, see `without_heads`."""
    return getattr(unwrapped(model), "training_heads", ())


def _load(model: nn.Module, path: Path | str, match: Match, wanted: Mapping[str, Tensor]) -> None:
    """Replace a model's weights; those that a match lacks stay."""
    weights = {
        key: _checked(path, key, tensor, match.weights.get(key, tensor))
        for key, tensor in wanted.items()
    }
    model.load_state_dict(model.state_dict() | weights)


# Checking the weights.


def _checked(path: Path | str, key: str, wanted: Tensor, given: Tensor) -> Tensor:
    """A tensor of a file in the model's type."""
    if is_counter(key):
        is_dense = given.layout == torch.strided and not given.is_meta
        is_number = is_dense and given.numel() == 1 and not given.is_complex()
        return given.reshape(wanted.shape).to(wanted.dtype) if is_number else wanted

    if not _is_plain(given) or given.is_floating_point() != wanted.is_floating_point():
        kind = given.dtype if given.layout == torch.strided else given.layout
        where = " without content" if given.is_meta else ""
        raise UserError(
            f"{path}: {key} is {kind}{where}, not plain numbers as {wanted.dtype}; save the "
            "weights as float32"
        )

    tensor = given.to(wanted.dtype)
    bad = int((~tensor.isfinite() & wanted.isfinite()).sum())
    if bad:
        raise UserError(
            f"{path}: {bad} of {tensor.numel()} values of {key} are NaN or infinite, so the run "
            "that wrote it diverged; give an earlier checkpoint, or train again"
        )
    if key.endswith("running_var") and (tensor < 0).any():
        raise UserError(f"{path}: {key} has negative values, which no variance has; save it again")
    return tensor


def check_finite(teacher: nn.Module) -> None:
    """Raise UserError where a teacher has weights or statistics that are not finite.

    Args:
        teacher: may be wrapped in another module, as its attribute `module`.
    """
    own = getattr(teacher, "module", teacher)
    statistics = {name: value for name, value in own.named_buffers() if "running_" in name}

    for name, tensor in (dict(own.named_parameters()) | statistics).items():
        if is_lazy(tensor) or not _is_plain(tensor) or tensor.isfinite().all():
            continue
        kind = type(own).__name__
        raise UserError(
            f"the teacher {kind} has values in {name} that are NaN or infinite; give one that was "
            "trained without diverging"
        )


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout == torch.strided and not tensor.is_meta
    return is_dense and tensor.dtype in _PLAIN_TYPES
