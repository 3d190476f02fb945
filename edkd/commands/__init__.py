"""The commands, one file each: `edkd NAME` and `python tools/NAME.py` call the same functions."""
