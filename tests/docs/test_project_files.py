"""What strangers read first: README, CONTRIBUTING, CITATION.cff, CHANGELOG, the workflow."""

import re
import shlex

import yaml

import edkd
from tests.docs.pages import CHECKOUT


def read(name):
    return (CHECKOUT / name).read_text(encoding="utf-8")


def targets():
    """The targets of the Makefile."""
    return set(re.findall(r"^([\w-]+):", read("Makefile"), flags=re.MULTILINE))


def test_the_readme_is_two_screens():
    assert len(read("README.md").splitlines()) <= 140


def test_figures_of_the_readme_are_on_the_pages_with_commands():
    pages = "".join(read(f"docs/{name}.md") for name in ("results", "performance"))
    rows = [line for line in read("README.md").splitlines() if line.startswith("|")]
    figures = [figure for row in rows for figure in re.findall(r"\d+\.\d+", row)]
    assert len(figures) > 10
    for figure in figures:
        assert figure in pages, figure


def test_the_citation_has_what_its_schema_requires():
    """The schema of version 1.2.0: required fields, allowed fields, and their forms."""
    citation = yaml.safe_load(read("CITATION.cff"))
    required = {"authors", "cff-version", "message", "title"}
    optional = {"abstract", "keywords", "license", "type", "version"}
    assert required <= set(citation) <= required | optional
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == edkd.__version__
    assert citation["license"] == "MIT"

    for author in citation["authors"]:
        assert set(author) == {"name"}
    assert len(set(citation["keywords"])) == len(citation["keywords"])


def test_the_changelog_begins_with_this_version():
    titles = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", read("CHANGELOG.md"), flags=re.MULTILINE)
    versions = [version for version, _ in titles if version != "Unreleased"]
    assert versions[0] == edkd.__version__
    groups = re.findall(r"^### (.+)$", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert set(groups) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_workflow_runs_targets_that_exist():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    made = [shlex.split(step["run"])[1] for step in steps if "run" in step]
    assert {"test", "lint", "docs"} <= set(made) <= targets()
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in read(".github/workflows/ci.yml")


def test_pages_name_targets_that_exist():
    for name in ("README.md", "CONTRIBUTING.md", "docs/getting-started.md"):
        for target in re.findall(r"(?:^|`)make ([\w-]+)", read(name), flags=re.MULTILINE):
            assert target in targets(), f"{name}: make {target}"
