"""Logits for tests of losses, and what a loss gives for them."""

import torch


def sample(number=6, classes=5, seed=0, scale=3.0):
    """Logits of a student and a teacher, and class numbers."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(number, classes, generator=generator, dtype=torch.float64)
    teacher = scale * torch.randn(number, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (number,), generator=generator)


def value_and_gradient(loss, student, teacher, target):
    student = student.clone().requires_grad_()
    value = loss(student, teacher, target)
    (gradient,) = torch.autograd.grad(value, student)
    return value, gradient
