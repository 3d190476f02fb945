"""Finished runs: reading, tables, figures. Nothing here imports torch or the engine."""
