"""Figures drawn by the command, in a folder of their own."""

import csv
import io

import pytest
from PIL import Image


@pytest.fixture
def draw(tool, tmp_path, monkeypatch):
    """draw("cka", RUN, ..., "--data"): run the command in tmp_path, on the CPU."""
    monkeypatch.chdir(tmp_path)

    def draw(kind, *words):
        device = [] if kind == "curves" else ["--device", "cpu"]
        done = tool("figure", kind, *words, *device)
        assert done.code == 0, done.err
        return done

    return draw


@pytest.fixture
def refused(tool, tmp_path, monkeypatch):
    """refused("cka", RUN): the error in one line; nothing was written."""
    monkeypatch.chdir(tmp_path)

    def refused(*words):
        done = tool("figure", *words)
        assert done.code == 2, done
        assert done.err.count("\n") == 1, done.err
        assert not (tmp_path / "figures").exists()
        return done.err

    return refused


@pytest.fixture
def picture(tmp_path):
    """picture("cka"): width in inches and number of colours of figures/cka.png."""

    def picture(name):
        image = Image.open(tmp_path / "figures" / f"{name}.png")
        assert image.height > 200
        colors = image.convert("RGB").getcolors(maxcolors=10**6)
        return image.width / 300, len(colors)

    return picture


@pytest.fixture
def table(tmp_path):
    """table("cka"): the rows of figures/cka.csv, as dictionaries."""
    return lambda name: list(
        csv.DictReader(io.StringIO((tmp_path / "figures" / f"{name}.csv").read_text()))
    )
