"""Builds the page: the sections of each data set, put into the template."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from typing import Any, NamedTuple

from edkd import __version__
from edkd.errors import UserError
from edkd.report.blocks import Chapter, Chart, Section
from edkd.report.numbers import counted
from edkd.report.sections.comparison import comparison_section
from edkd.report.sections.configuration import configuration
from edkd.report.sections.curves import curves
from edkd.report.sections.environment import environment
from edkd.report.sections.results import results
from edkd.report.sections.times import times
from edkd.report.subject import Subject, subjects_of
from edkd.results.runs import Run

MARKER = '<meta name="generator" content="edkd report'
"""Text near the start of each page, by which `edkd report` knows its own files."""

Analyse = Callable[[Subject], Sequence[Section]]
"""Sections that need weights and images."""


class _Files(NamedTuple):
    """What is put into the page as it is."""

    style: str
    script: str
    plotly: str


def check_packages() -> None:
    """Raise UserError where plotly or Jinja is missing."""
    try:
        import jinja2  # noqa: F401
        import plotly.offline  # noqa: F401
    except ImportError:
        raise UserError("a report needs plotly and Jinja: pip install plotly jinja2") from None


def page(runs: Sequence[Run], left_out: Sequence[str] = (), analyse: Analyse | None = None) -> str:
    """The page as text.

    Args:
        runs: finished runs, at least one.
        left_out: lines about folders that hold no finished run.
        analyse: sections about predictions; None: they are left out.

    Raises:
        UserError: plotly or Jinja is missing.
    """
    check_packages()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    subjects = subjects_of(runs)
    chapters = [
        _chapter(i, subject, analyse(subject) if analyse else ())
        for i, subject in enumerate(subjects, 1)
    ]

    # Every text from a run is escaped.
    loader = PackageLoader("edkd.report")
    templates = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["chart_data"] = _chart_data
    templates.filters["breakable"] = _breakable
    files = _Files(_own_file("style.css"), _own_file("page.js"), get_plotlyjs())
    return templates.get_template("page.html").render(
        title=_title(subjects),
        chapters=chapters,
        left_out=left_out,
        version=__version__,
        marker=f"edkd report {__version__}",
        files=files,
        policy=_policy(files),
    )


def _chapter(place: int, subject: Subject, analysed: Sequence[Section]) -> Chapter:
    sections = [
        results(subject),
        comparison_section(subject),
        curves(subject),
        *analysed,
        times(subject),
        configuration(subject),
        environment(subject),
    ]
    lead = f"{counted(len(subject.runs), 'run')} in {counted(len(subject.lines), 'configuration')}"
    return Chapter(f"data{place}", subject.dataset, lead, sections)


def _title(subjects: Sequence[Subject]) -> str:
    runs = sum(len(subject.runs) for subject in subjects)
    names = ", ".join(subject.dataset for subject in subjects[:3])
    more = ", ..." if len(subjects) > 3 else ""
    return f"{counted(runs, 'run')} on {names}{more}"


def _chart_data(chart: Chart) -> dict[str, Any]:
    """What the script of the page reads."""
    return {"data": _without_markup(chart.traces), "layout": _without_markup(chart.layout)}


def _breakable(name: str) -> str:
    """HTML of a name of a run, which can be broken after "," and "="."""
    import markupsafe

    text = markupsafe.escape(name)
    for mark in (",", "="):
        text = text.replace(mark, markupsafe.Markup(f"{mark}<wbr>"))
    return text


def _without_markup(value: Any) -> Any:
    """Texts for plotly, which takes tags and entities in them for markup.

    Templates are of this package, and the markup in them is meant.
    """
    if isinstance(value, str):
        return escape(value, quote=False)
    if isinstance(value, list | tuple):
        return [_without_markup(part) for part in value]
    if not isinstance(value, dict):
        return value

    kept = {key: part for key, part in value.items() if key == "hovertemplate"}
    return {key: _without_markup(part) for key, part in value.items()} | kept


def _policy(files: _Files) -> str:
    """The Content-Security-Policy: no request, and no script but the two of this page."""
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in (files.plotly, files.script))
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _own_file(name: str) -> str:
    return resources.files("edkd.report").joinpath(name).read_text(encoding="utf-8")
