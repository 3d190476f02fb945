"""The configuration: one table of keys, strict loading, checks, and comparison with saved runs."""
