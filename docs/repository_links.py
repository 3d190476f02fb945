"""A hook of mkdocs: links from a page to files outside docs/ work on GitHub and in the site.

A page links to them by their path in the repository, as `../data/README.md`. The site gets a copy
of each such file in its folder `repository/`, and the links lead there. Links to folders become
plain text.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

COPIES = "repository/"
"""Folder of the site for files outside docs/."""

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    waiting = [_source(file.src_uri) for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for target in _targets(page):
            if target in seen or target.startswith("docs/") or not (ROOT / target).is_file():
                continue
            seen.add(target)
            copy = File.generated(config, COPIES + target, abs_src_path=str(ROOT / target))
            files.append(copy)
            if target.endswith(".md"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page to the places of their files in the site."""
    place = page.file.src_uri
    source = _source(place)

    def changed(match: re.Match[str]) -> str:
        target = _target(source, match["path"])
        if (ROOT / target).is_dir():
            return match["text"]

        path = posixpath.relpath(_place(target), posixpath.dirname(place) or ".")
        return f"[{match['text']}]({path}{match['anchor'] or ''})"

    return LINK.sub(changed, markdown)


def _source(place: str) -> str:
    """The path in the repository of a file of the site."""
    return place.removeprefix(COPIES) if place.startswith(COPIES) else f"docs/{place}"


def _place(source: str) -> str:
    """The path in the site of a file of the repository."""
    return source.removeprefix("docs/") if source.startswith("docs/") else COPIES + source


def _target(source: str, path: str) -> str:
    """The path in the repository of the file that a link in another file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path))


def _targets(source: str) -> Iterator[str]:
    """The paths in the repository of all files that a page links to."""
    text = (ROOT / source).read_text(encoding="utf-8")
    for match in LINK.finditer(text):
        yield _target(source, match["path"])
