"""The results of the slices: a JSON file for each, and one table. Neither torch nor edkd is needed.

A result is kept as soon as its part of a slice is done, so that nothing is measured twice.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SLICES = {
    "environment": "hardware, driver, versions",
    "correctness": "losses, gradients, views, teacher cache, accuracy: against the CPU; CUDA tests",
    "captured": "SOLVER.CUDA_GRAPH against eager steps, for each method",
    "precision": "fp16, bf16, float32; resume and SOLVER.DETERMINISTIC bit for bit",
    "times": "step, epoch and whole recipe against the plain loop",
    "processes": "torchrun with two processes against one",
}
"""What each slice does, in the order in which they run."""

TABLE = "gpu.md"

OK = "ok"
FAILED = "FAILED"
SKIPPED = "skipped"

UNFINISHED = 75
"""Exit code where parts are left: the same command continues."""

BROKEN = 70
"""Exit code of the worker where an error made the device unusable in its process, and its part has
its result: another process runs the other parts."""

HEADER = ("| slice | part | result | figures | s |", "|---|---|---|---|--:|")


class Record:
    """The results of a slice.

    Args:
        folder: of all results.
        name: of the slice.
        settings: how it runs, as the device; results of other settings are not mixed with these.

    Raises:
        ValueError: the folder has results of other settings.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.path = folder / f"{name}.json"
        self.content: dict[str, Any] = {
            "slice": name,
            "settings": dict(settings),
            "done": False,
            "running": None,
            "parts": {},
        }
        if self.path.is_file():
            self.content = json.loads(self.path.read_text(encoding="utf-8"))
        if self.content["settings"] != dict(settings):
            raise ValueError(
                f"{self.path} has results of {self.content['settings']}, not of {dict(settings)}; "
                "remove it, or give another --output"
            )

    @property
    def is_done(self) -> bool:
        """Whether no part is left."""
        return self.content["done"]

    @property
    def running(self) -> str | None:
        """The part that had begun when the process ended."""
        return self.content["running"]

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The result of each part that is done."""
        return self.content["parts"]

    def begin(self, part: str) -> None:
        """Note that a part runs."""
        self.content["running"] = part
        self.save()

    def end(self, part: str, result: Mapping[str, Any]) -> None:
        """Keep the result of a part.

        Args:
            result: "status", "seconds", and figures by name.
        """
        self.content["running"] = None
        self.parts[part] = dict(result)
        self.save()

    def cut_off(self) -> None:
        """Note that no part runs any more."""
        if self.running:
            self.content["running"] = None
            self.save()

    def finish(self) -> None:
        """Note that no part is left."""
        self.content["done"] = True
        self.save()

    def save(self) -> None:
        """Replace the file, and its copy in the folder that the variable OUT names."""
        replace(self.path, json.dumps(self.content, indent=1) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a file whole, and a copy into the folder that the environment variable OUT names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)

    copies = os.environ.get("OUT", "")
    if copies and Path(copies).resolve() != path.parent.resolve():
        Path(copies).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, Path(copies) / path.name)


def stored(folder: Path) -> list[dict[str, Any]]:
    """The content of all records, in the order of the slices."""
    paths = [folder / f"{name}.json" for name in SLICES]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def save_table(folder: Path) -> str:
    """Write one Markdown table of all results; return it."""
    lines = [*HEADER]
    for content in stored(folder):
        for part, result in content["parts"].items():
            lines.append(row(content["slice"], part, result))
        if not content["done"]:
            lines.append(f"| {content['slice']} | (further parts) | not run yet | | |")
    text = "\n".join(lines) + "\n"
    replace(folder / TABLE, text)
    return text


def row(name: str, part: str, result: Mapping[str, Any]) -> str:
    """A line of the table."""
    figures = {key: value for key, value in result.items() if key not in ("status", "seconds")}
    text = ", ".join(f"{key} {short(value)}" for key, value in figures.items())
    cells = [name, part, result["status"], text, f"{result['seconds']:.1f}"]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def short(value: Any) -> str:
    """A figure for the table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split())


def failures(folder: Path) -> list[str]:
    """The parts that failed, as "slice/part"."""
    return [
        f"{content['slice']}/{part}"
        for content in stored(folder)
        for part, result in content["parts"].items()
        if result["status"] == FAILED
    ]
