"""A trained student as a file for other programs, and predictions with such files."""
