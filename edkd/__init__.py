"""edkd: knowledge distillation where the teacher is nearly free and every number can be trusted."""

__version__ = "0.1.0"
