"""Tuning: hyper-parameters are searched on held-out training images, never on the test set."""
