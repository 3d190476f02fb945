"""A small network and a random data set, to try a loop with."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class MLP(nn.Module):
    """Three linear layers with ReLU between them: (N,in_features) -> logits (N,out_features)."""

    def __init__(self, in_features: int, out_features: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_features, hidden)
        self.relu1 = nn.ReLU()
        self.linear2 = nn.Linear(hidden, hidden)
        self.relu2 = nn.ReLU()
        self.linear3 = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,out_features) for inputs (N,in_features)."""
        for layer in self.children():
            x = layer(x)
        return x


class PseudoDataset(Dataset):
    """Random inputs with random labels, the same in each process.

    Args:
        size: of an input, one number or several.
        num_samples: number of inputs.
        num_classes: labels are below it.
    """

    def __init__(
        self, size: int | tuple[int, ...] = 100, num_samples: int = 1000, num_classes: int = 10
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (size,) if isinstance(size, int) else tuple(size)
        self.inputs = torch.randn(num_samples, *shape, generator=generator)
        self.targets = torch.randint(num_classes, (num_samples,), generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]
