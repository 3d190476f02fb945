"""Versions, hardware, precision, commit and command of the runs."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from edkd.report.blocks import Block, Code, Details, Note, Section, text_table
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


def environment(subject: Subject) -> Section:
    """What all runs share, a table of what differs, and the command of each run."""
    lead = "Versions and hardware that the runs noted. Values that differ from most are marked."
    runs = _named_runs(subject.lines)
    known = {name: _facts(run) for name, run in runs.items() if run.environment}
    if not known:
        note = Note("The folders of these runs have no environment.json.")
        return Section("environment", "Environment", lead, [note])

    blocks: list[Block] = []
    missing = len(runs) - len(known)
    if missing:
        blocks.append(Note(f"{counted(missing, 'run')} without environment.json left out."))

    # What differs comes before what is shared.
    differing = differing_keys(list(known.values()))
    if differing:
        caption = f"What differs between the runs, of {subject.dataset}"
        blocks.append(comparison(caption, "fact", differing, known))
    elif len(known) > 1:
        blocks.append(Note(f"All {len(known)} runs have the same versions and hardware."))

    shared = [
        [name, str(value)]
        for name, value in next(iter(known.values())).items()
        if name not in differing
    ]
    title = "Shared by all runs" if len(known) > 1 else "The run"
    blocks.append(text_table(f"{title}, of {subject.dataset}", ["fact", "value"], shared))
    blocks.append(_commands(runs))
    return Section("environment", "Environment", lead, blocks)


def _named_runs(lines: Sequence[Line]) -> dict[str, Run]:
    """Each run, named by its row and its seed."""
    found: dict[str, Run] = {}
    for line in lines:
        for run in line.row.runs:
            name = line.name if len(line.row.runs) == 1 else f"{line.name}, seed {run.seed}"
            if name in found:
                name = f"{name} ({len(found) + 1})"
            found[name] = run
    return found


def _facts(run: Run) -> dict[str, Any]:
    """Facts of a run by their names; absent ones are left out."""
    about = run.environment
    facts = {"precision": run.precision or "auto"}
    facts |= {name: str(about[key]) for key, name in _FACTS.items() if about.get(key) is not None}

    packages = about.get("packages")
    if isinstance(packages, Mapping):
        facts |= {str(name): str(version) for name, version in packages.items()}
    return facts


def _commands(runs: Mapping[str, Run]) -> Details:
    """The command line of each run, and the folder where it was given."""
    blocks = [
        Code(_command(run), f"Command of {name}") for name, run in runs.items() if run.environment
    ]
    return Details("Commands", blocks)


def _command(run: Run) -> str:
    words = run.environment.get("command")
    command = shlex.join(map(str, words)) if isinstance(words, list) else "(not noted)"
    cwd = run.environment.get("cwd")
    return f"cd {shlex.quote(str(cwd))}\n{command}" if cwd else command
