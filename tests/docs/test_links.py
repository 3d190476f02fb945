"""Links of all pages lead to files and sections that exist."""

import re

import pytest

from tests.docs.pages import CHECKOUT, PAGES, anchors, links, name_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert target.is_relative_to(CHECKOUT), f"{name_of(page)}: {link} leaves the repository"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_pages_name_exist(page):
    text = page.read_text(encoding="utf-8")
    folders = "configs|benchmarks|edkd|notebooks|tests"
    for path in re.findall(rf"(?<![\w/])(?:{folders})/[\w/.\-]+\.(?:yaml|py|ipynb)\b", text):
        assert (CHECKOUT / path).is_file(), f"{name_of(page)}: {path}"
    for path in re.findall(rf"`((?:{folders})/[\w/\-]+/)`", text):
        assert (CHECKOUT / path).is_dir(), f"{name_of(page)}: {path}"


def test_a_missing_section_is_found():
    assert "no-such-section" not in anchors(CHECKOUT / "README.md")
    assert "quick-start" in anchors(CHECKOUT / "README.md")
