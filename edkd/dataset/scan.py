"""A function of every file of a data set, called in the data workers, with a progress bar."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from edkd.dataset.workers import start_worker, supervise

_PART = 32
"""Items in a task of a worker."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Calls(TorchDataset):
    """The results of a function, by the number of the item."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function = function
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.function(self.items[number])


def in_workers(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    num_workers: int,
    timeout: float,
) -> list[_Result]:
    """The results for all items, in their order; a progress bar is shown on a terminal.

    Args:
        function: as `FolderImages.fault`; what it raises, ends the scan.
        num_workers: processes; 0: this process.
        timeout: in seconds, after which a worker counts as hanging.

    Raises:
        WorkerError: a worker died or hung.
    """
    loader = DataLoader(
        _Calls(function, items),
        batch_size=_PART,
        num_workers=num_workers,
        collate_fn=list,
        timeout=timeout if num_workers else 0,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # without one, each pass draws from the global generator
    )

    results: list[_Result] = []
    bar = tqdm(
        total=len(items),
        desc="reading all images",
        unit="image",
        leave=False,
        disable=None,
        dynamic_ncols=True,
    )

    with bar:
        for part in supervise(loader):
            results += part
            bar.update(len(part))
    return results
