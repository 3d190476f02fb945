"""The documentation site: it builds without a warning, and loads nothing from other hosts."""

import re
import subprocess
import sys

import pytest

import edkd
from tests.docs.pages import CHECKOUT, DOCS

pytestmark = pytest.mark.slow

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site; a warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site):
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").is_file(), page


def test_files_outside_docs_are_copied(site):
    """A link to data/README.md works in the site, too, and its links lead back."""
    text = (site / "your-images.html").read_text(encoding="utf-8")
    assert 'href="repository/data/index.html"' in text
    copied = (site / "repository/data/index.html").read_text(encoding="utf-8")
    assert 'href="../../performance.html#image-folders"' in copied


def test_nothing_is_loaded_from_other_hosts(site):
    loading = r"<(?:link|script|img|iframe)[^>]*(?:href|src)=\"(?:https?:)?//[^\"]*"
    for page in site.rglob("*.html"):
        assert not re.findall(loading, page.read_text(encoding="utf-8")), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//", style.read_text(encoding="utf-8"))


def test_the_public_interface_is_documented(site):
    """Each name of `edkd` has an entry with its docstring."""
    pages = [site / name for name in ("api.html", "losses.html")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    for name in edkd.__all__:
        assert re.search(rf"<h\d[^>]*id=\"edkd\.[\w.]*\b{name}\"", text), name
