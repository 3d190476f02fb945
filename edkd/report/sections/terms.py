"""Titles of the terms of the loss."""

SPLITS = {"train": "training images", "val": "held-out images", "test": "test set"}

_TERMS = {
    "loss": "Loss, all terms",
    "loss_ce": "Task loss",
    "loss_kd": "Distillation loss",
}


def term_title(split: str, term: str) -> str:
    """As "Task loss, training images".

    Args:
        split: train, val or test.
        term: as `metrics.jsonl` has it, as "loss_ce".
    """
    name = _TERMS.get(term, f"Term {term}")
    if split != "train" and term == "loss":
        name = "Cross-entropy"
    return f"{name}, {SPLITS[split]}"
