"""The pages of the project, and the code and commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
OTHERS = ("*.md", "data/*.md", "download_ckpts/*.md", "results/**/*.md")

PAGES = sorted(path for pattern in ("docs/*.md", *OTHERS) for path in CHECKOUT.glob(pattern))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
_ASSIGNMENT = re.compile(r'^(\w+)="(.*)"(?:\s+#.*)?$')
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


class Command(NamedTuple):
    """A command of this project on a page.

    Attributes:
        page: its name, for messages.
        name: `train`, `eval`, ...
        words: what follows.
    """

    page: str
    name: str
    words: list[str]


def name_of(page: Path) -> str:
    """The path of a page in the checkout."""
    return page.relative_to(CHECKOUT).as_posix()


def code(page: Path, language: str) -> list[str]:
    """The blocks of code in a language."""
    text = page.read_text(encoding="utf-8")
    return [block for kind, block in _FENCE.findall(text) if kind == language]


def prose(page: Path) -> str:
    """The text without blocks of code."""
    text = page.read_text(encoding="utf-8")
    return _FENCE.sub("", text)


def links(page: Path) -> list[str]:
    """The targets of all links and pictures that lead to other pages, files or sections."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(page))
    found = _LINK.findall(without_code)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.strip().lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


def commands(page: Path) -> list[Command]:
    """Every command of this project in the blocks of code, with the page's variables filled in."""
    blocks = [*code(page, "bash"), *_INDENTED.findall(prose(page))]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()

    variables: dict[str, str] = {"seed": "1"}
    found: list[Command | None] = []
    for line in map(str.strip, lines):
        assigned = _ASSIGNMENT.match(line)
        if assigned:
            variables[assigned[1]] = _filled(assigned[2], variables)
            continue
        parts = re.split(r" (?:&&|\|) ", _filled(line, variables))
        found += [_command(page, part) for part in parts]
    return [command for command in found if command]


def _filled(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), text)


def _command(page: Path, line: str) -> Command | None:
    """The command in a line; None where it is one of another program, or has a placeholder."""
    if not re.search(r"\bedkd |tools/\w+\.py", line):
        return None
    words = shlex.split(line.partition(" > ")[0], comments=True)
    if "..." in words:
        return None

    # `edkd NAME`, `torchrun ... -m edkd NAME`, or `python tools/NAME.py`, perhaps after X=1.
    for place, word in enumerate(words):
        if word in ("edkd", ".venv/bin/edkd") and words[place + 1 :]:
            return Command(name_of(page), words[place + 1], words[place + 2 :])
        if re.fullmatch(r"tools/\w+\.py", word):
            return Command(name_of(page), Path(word).stem.replace("_", "-"), words[place + 1 :])
    return None
