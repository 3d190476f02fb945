"""Small data for the notebook interfaces."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture
def data():
    """80 inputs of 20 numbers; the largest of the first three is the class. Training, test."""
    inputs = torch.randn(80, 20, generator=torch.Generator().manual_seed(0))
    pairs = TensorDataset(inputs, inputs[:, :3].argmax(1))
    return DataLoader(pairs, 16, shuffle=True), DataLoader(pairs, 40)


@pytest.fixture
def images():
    """16 random images of 3x32x32 in four classes. Training, test."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 3, 32, 32, generator=generator)
    pairs = TensorDataset(inputs, torch.randint(4, (16,), generator=generator))
    return DataLoader(pairs, 8, shuffle=True), DataLoader(pairs, 16)
