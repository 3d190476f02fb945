"""The log of a run: progress bar, work log, metrics, and the sinks TensorBoard and wandb."""
