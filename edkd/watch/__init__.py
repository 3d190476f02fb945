"""The runs of a folder, also those that other processes run: where they are, and following them.

Nothing here imports torch or writes a file.
"""
