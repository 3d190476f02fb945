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
        return f"python {program.with_name(name.replace('-', '_'))}.py"
    if program.name == "__main__.py":
        return f"python -m edkd {name}"
    return f"edkd {name}"


def other_checkout() -> str:
    """Why another code runs than the user may expect, in one line; "" where it does not.

    The code is imported from where it is installed. A checkout of edkd that holds the script, or
    that is the current folder, may be another one.
    """
    imported = Path(__file__).resolve().parents[1]
    try:
        here = _own_checkout()
    except OSError:  # the current folder was removed
        return ""
    if here is None or here == imported:
        return ""

    return (
        f"the code of {imported} runs, not that of {here}; for the latter, run "
        f"'pip install -e .' there, or set PYTHONPATH to it"
    )


def _own_checkout() -> Path | None:
    """The checkout that holds the script of this command, else the one in the current folder."""
    script = Path(sys.argv[0] if sys.argv else "").absolute()
    folders = [Path.cwd()]
    if script.parent.name == "tools":
        folders.insert(0, script.parent.parent)

    for folder in folders:
        if (folder / "edkd" / "invocation.py").is_file():
            return folder.resolve()
    return None
