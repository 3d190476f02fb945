"""An extension of griffe: the section "Example:" of a docstring becomes a block of code."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"^Example:\n(?P<code>(?: {4}.*\n?|\n)+)", re.MULTILINE)


class DocstringExamples(griffe.Extension):
    """Google's style, which griffe reads, has "Examples:" for doctests alone."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub(_as_code, obj.docstring.value)


def _as_code(match: re.Match[str]) -> str:
    lines = [line[4:] for line in match["code"].rstrip().splitlines()]
    language = "pycon" if lines[0].startswith(">>>") else "python"
    return "\n".join([f"```{language}", *lines, "```", ""])
