"""The teacher cache: logits of a frozen teacher, computed once per augmented view, kept on disk."""
