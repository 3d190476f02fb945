"""Versions, hardware, precision, commit and command of the runs."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from edkd.report.blocks import Block, Cell, Code, Column, Details, Note, Section, Table
from edkd.report.numbers import counted
from edkd.report.sections.configuration import comparison, differing_keys
from edkd.report.subject import Line, Subject
from edkd.results.runs import Run

_FACTS = {
    "device": "hardware",
    "cores": "cores",
    "threads": "threads",
    "system": "system",
    "python": "Python",
    "edkd": "edkd",
    "commit": "commit of edkd",
}
"""Keys of `environment.json`, and how the report names them."""

_DIGITS = 12
"""Of a commit, which are enough for git."""

_LEAD = "Versions and hardware that the runs noted. Values that differ from most are marked."


def environment(subject: Subject) -> Section:
    """What all runs share, a table of what differs, and the command of each run."""
    runs = _named_runs(subject.lines)
    noted = {name: run for name, run in runs.items() if run.environment}
    blocks: list[Block] = []

    missing = len(runs) - len(noted)
    if missing:
        blocks.append(Note(f"{counted(missing, 'run')} without environment.json."))
    if noted:
        blocks += _noted(noted)
    return Section("environment", "Environment", _LEAD, blocks)


def _noted(runs: Mapping[str, Run]) -> list[Block]:
    """What differs comes before what is shared."""
    facts = {name: _facts(run) for name, run in runs.items()}
    every = list(facts.values())
    differing = differing_keys(every)

    blocks: list[Block] = []
    if differing:
        blocks.append(comparison("What differs between the runs", "fact", differing, facts))
    elif len(runs) > 1:
        blocks.append(Note(f"All {len(runs)} runs have the same versions and hardware."))

    shared = {name: value for name, value in every[0].items() if name not in differing}
    blocks.append(_shared(shared))
    blocks.append(_commands(runs))
    return blocks


def _named_runs(lines: Sequence[Line]) -> dict[str, Run]:
    """Each run, named by its row and its seed."""
    found: dict[str, Run] = {}
    for line in lines:
        for run in line.row.runs:
            name = line.name
            if len(line.row.runs) > 1:
                name += f", seed {run.seed}"
            if name in found:
                name += f", run {len(found) + 1}"
            found[name] = run
    return found


def _facts(run: Run) -> dict[str, Any]:
    """Facts of a run by their names; absent ones are left out."""
    about = run.environment
    facts = {"precision": run.precision or "automatic"}
    for key, name in _FACTS.items():
        value = about.get(key)
        if value is not None:
            facts[name] = str(value)
    if about.get("commit"):
        facts[_FACTS["commit"]] = _short_commit(str(about["commit"]))

    packages = about.get("packages")
    if isinstance(packages, Mapping):
        facts |= {str(name): str(version) for name, version in packages.items()}
    return facts


def _short_commit(commit: str) -> str:
    """The first digits, and "+changes" where the code was edited."""
    digits, plus, changes = commit.partition("+")
    return digits[:_DIGITS] + plus + changes


def _shared(facts: Mapping[str, Any]) -> Table:
    columns = [Column("fact", is_number=False), Column("value", is_number=False)]
    rows = []
    for name, value in facts.items():
        rows.append([Cell(name), Cell(value)])
    return Table("Shared by all of these runs", columns, rows)


def _commands(runs: Mapping[str, Run]) -> Details:
    """The command line of each run, and the folder where it was given."""
    blocks = []
    for name, run in runs.items():
        label = f"Command of {name}"
        blocks.append(Code(_command(run), label))
    return Details("Commands", blocks)


def _command(run: Run) -> str:
    words = run.environment.get("command")
    command = "(not noted)"
    if isinstance(words, list):
        command = shlex.join(map(str, words))

    cwd = run.environment.get("cwd")
    if not cwd:
        return command
    return f"cd {shlex.quote(str(cwd))}\n{command}"
