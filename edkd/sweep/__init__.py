"""Sweeps: many runs of the command train, on this machine or on a Ray cluster."""
