"""edkd: knowledge distillation, in which a large trained teacher network teaches a small student."""

__version__ = "0.1.0"
