"""How the user started this program, so that messages name commands in the same form."""

import sys
from pathlib import Path


def command(name: str) -> str:
    """A command as this user would type it: "edkd train", or "python tools/train.py".

    Args:
        name: of the command, as "train".
    """
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("edkd")
    if program.parent.name == "tools" and program.suffix == ".py":
        return f"python {program.with_name(name)}.py"
    if program.name == "__main__.py":
        return f"python -m edkd {name}"
    return f"edkd {name}"
