"""Configuration, training, checkpoints, logs and evaluation."""
