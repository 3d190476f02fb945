"""docs/methods.md: an entry for every method, update rule and switch, with what the code says.

`python -m tests.test_method_docs` writes the page anew: from docs/methods.yaml, which people write,
from the docstrings, and from what the registry and the teacher cache say of each method. The
section "Measured" of the page stays as it is.
"""

import functools
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from edkd.distillers import _base as base
from edkd.distillers import check_switches, construct, find_method, method_names
from edkd.distillers._features import feature_shapes
from edkd.distillers._switches import Switches
from edkd.engine.config.load import load_config
from edkd.engine.config.table import shown_default, table
from edkd.engine.memo.cache import why_not
from edkd.errors import UserError
from edkd.models import get_model
from edkd.registry import METHODS, UPDATES
from edkd.types import DataInfo
from tests.small import CPU, config, make_distiller, tiny_data

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "methods.md"
TEXTS = yaml.safe_load((DOCS / "methods.yaml").read_text(encoding="utf-8"))

FIELDS = {"title", "transfers", "loss", "use", "networks"}
OPTIONAL = {"cost", "paper"}
MEASURED = "## Measured\n"
SWITCH = "DISTILLER."
PAIR = ("resnet56", "resnet20")
"""Networks for which the parameters of a method are counted."""

INTRODUCTION = """# Methods

What each `DISTILLER.TYPE` transfers, its loss, its source, and what it costs. Methods that define
`losses` add up: `DISTILLER.TYPE KD+AT`. A method of your own is one file, see
[extending.md](extending.md); all keys are in [keys.md](keys.md).

In the equations, z are the logits of an image, p = softmax(z / T), f the pooled feature (N,D), F a
feature map (N,D,H,W), y the label, e the epoch; `_s` is the student and `_t` the teacher. Sums over
images are means over the batch. The task loss, CE(z_s, y) with the weight `CE_WEIGHT`, is added to
each of them.

This file is the output of `python -m tests.test_method_docs`, and a test compares both. The texts
are in [methods.yaml](methods.yaml).
"""


# The page.


def page():
    sections = [INTRODUCTION, overview(), measured()]
    sections += ["## The methods\n", *(entry(name) for name in methods())]
    sections += ["## Update rules\n", *(rule_entry(name) for name in rules())]
    sections += ["## Switches\n", *(switch_entry(name) for name in switches())]
    return "\n".join(sections)


def measured():
    """The section as it is on the page, which people write."""
    text = PAGE.read_text(encoding="utf-8")
    start = text.index(MEASURED)
    return text[start : text.index("\n## ", start)].rstrip() + "\n"


def methods():
    """Those of the package, without plugins."""
    entries = METHODS.entries()
    return [each.name for each in entries if each.value.__module__.startswith("edkd.")]


def rules():
    return [name for name in UPDATES.names() if name != "base"]


def switches():
    return [name for name in TEXTS if name.startswith(SWITCH) and name in table()]


def overview():
    """A line for each method."""
    lines = [
        "## Overview\n",
        "| method | what it is | reads of the teacher | teacher cache | views |",
        "|---|---|---|---|--:|",
    ]
    for name in methods():
        cls = find_method(name)
        reads = ", ".join(tiny(name).teacher_needs) if cls.needs_teacher else ""
        cells = [link(name), TEXTS[name]["title"], reads, cached(name), str(len(cls.views))]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Update rules: {', '.join(map(link, rules()))}."]
    lines += [f"Switches: {', '.join(map(link, switches()))}.", ""]
    return "\n".join(lines)


def link(name):
    """A link to an entry, with the anchor that GitHub makes of its title."""
    return f"[{name}](#{re.sub(r'[^a-z0-9_-]', '', name.lower())})"


def entry(name):
    """A method."""
    cls = find_method(name)
    lines = [*beginning(name, paper(cls))]
    lines.append(f"- Costs: {costs(name)}.")
    lines.append(f"- Works with: {works_with(name)}.")
    lines += keys_line(f"{name}.", f"keys.md#{name.lower()}")
    return "\n".join([*lines, ""])


def rule_entry(name):
    """An update rule."""
    value = UPDATES.find(name).value
    lines = [*beginning(name, paper(value), "Changes", "Step")]
    lines.append(f"- Costs: {TEXTS[name]['cost']}.")
    lines += keys_line(f"SOLVER.{name.upper()}.", "keys.md#solver")
    lines.append(f"- Choose it by `SOLVER.TRAINER {name}`.")
    return "\n".join([*lines, ""])


def switch_entry(name):
    """A switch."""
    lines = [*beginning(name, TEXTS[name].get("paper", ""), "Changes")]
    lines += keys_line(name, "keys.md#distiller", remove="")
    return "\n".join([*lines, ""])


def beginning(name, source, first="Transfers", second="Loss"):
    text = TEXTS[name]
    title = text["title"]
    yield f"### {name}\n"
    yield f"{title[0].upper()}{title[1:]}. {source}".rstrip() + "\n"
    yield f"- {first}: {text['transfers']}."
    loss = text["loss"]
    is_formula = not loss.startswith(("none", "the method's own"))
    yield f"- {second}: `{loss}`." if is_formula else f"- {second}: {loss}."
    yield f"- Use it {text['use']}."
    yield f"- Networks: {text['networks']}."


def paper(value):
    """The paragraph with the paper in the docstring of the module of a class; "" without one."""
    docstring = inspect.getdoc(sys.modules[value.__module__]) or ""
    paragraphs = [" ".join(part.split()) for part in docstring.split("\n\n")[1:]]
    with_year = [part for part in paragraphs if re.search(r"\b(19|20)\d\d\b", part)]
    is_citation = with_year and with_year[0].count(",") >= 2 and '"' in with_year[0]
    return with_year[0] if is_citation else ""


def keys_line(prefix, anchor, remove=None):
    """The keys that begin with a prefix, with their defaults."""
    removed = prefix if remove is None else remove
    found = {name: key for name, key in table().items() if name.startswith(prefix)}
    shown = [f"`{name.removeprefix(removed)}` {shown_default(key)}" for name, key in found.items()]
    if shown:
        yield f"- [Keys]({anchor}): {', '.join(shown)}."


# What the code says of a method.


def costs(name):
    """What a method needs besides the student."""
    cls = find_method(name)
    parts = [TEXTS[name]["cost"]] if "cost" in TEXTS[name] else []
    if cls.needs_teacher:
        parts.append(f"reads {', '.join(tiny(name).teacher_needs)} of the teacher")
        parts.append(f"teacher cache: {cached(name)}")
    extra = extra_parameters(name)
    if extra:
        number = f"{extra:,} parameters" if extra > 1 else "one parameter"
        parts.append(f"trains {number} of its own ({' -> '.join(PAIR)})")
    if len(cls.views) > 1:
        parts.append(f"the views {' and '.join(cls.views)}, so that networks run for each")
    if cls.collects:
        parts.append("a pass over the training images before the first step")
    if tiny(name).gathers_batch:
        parts.append("relates the images of a batch, so that its size matters")
    return "; ".join(parts) or "nothing"


def cached(name):
    """Whether the teacher cache serves a method."""
    cls = find_method(name)
    if not cls.needs_teacher:
        return ""
    cfg = config("DISTILLER.TYPE", name)
    loader = tiny_data(cfg).train
    loader.views = cls.views
    loader.augmentations = dict.fromkeys(cls.views, loader.augmentations["weak"])
    is_off = why_not(tiny(name), loader, None, CPU)
    return "no" if is_off else "yes"


@functools.cache
def tiny(name):
    """A method with tiny networks."""
    return make_distiller(name)


def extra_parameters(name):
    """Of a method with PAIR on CIFAR-100; 0 where it cannot use these networks."""
    cls = find_method(name)
    if not tiny(name).get_extra_parameters():
        return 0
    cfg = load_config(opts=["DISTILLER.TYPE", name])
    targets = torch.arange(500) % 100
    info = DataInfo(100, len(targets), targets, (3, 32, 32))
    teacher, student = (network(each) for each in PAIR)
    if cls.is_cohort:
        student = nn.ModuleList([student] * len(cls.student_names(cfg)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "feature_shapes", known_shapes)
        try:
            distiller = construct(cls, student, teacher, cfg, info)
        except UserError:
            return 0
    return distiller.get_extra_parameters()


@functools.cache
def network(name):
    return get_model("cifar", name, 100)


@functools.cache
def known_shapes(network, image_shape):
    """As `feature_shapes`, found once for each network."""
    return feature_shapes(network, image_shape)


def works_with(name):
    """The switches, targets and combinations that a method takes."""
    cls = find_method(name)
    found = [key for key, given in SWITCHED.items() if takes(name, given)]
    if not cls.needs_class_numbers:
        found.append("soft targets (mixup, cutmix)")
    if combines(name):
        found.append(f"other methods (`{name}+...`)")
    return ", ".join(found) or "hard targets alone"


SWITCHED = {"LSKD": Switches(lskd=True), "EAKD": Switches(eakd=True)}


def takes(name, given):
    distiller = tiny(name)
    distiller.switches = given
    try:
        check_switches(distiller, name)
    except UserError:
        return False
    finally:
        distiller.switches = Switches()
    return True


def combines(name):
    other = "DKD" if name == "KD" else "KD"
    try:
        find_method(f"{name}+{other}")
    except UserError:
        return False
    return True


# Tests.


def test_the_page_is_up_to_date():
    assert page() == PAGE.read_text(encoding="utf-8"), "python -m tests.test_method_docs"


@pytest.mark.parametrize("name", [*methods(), *rules(), *switches()])
def test_every_method_rule_and_switch_has_a_text(name):
    assert name in TEXTS, f"docs/methods.yaml has no text for {name}"


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_complete_and_plain(name):
    text = TEXTS[name]
    assert FIELDS <= set(text) <= FIELDS | OPTIONAL
    for field, words in text.items():
        assert words.isascii(), (field, words)
        assert words == words.strip()
        assert field == "paper" or not words.endswith("."), (field, words)
    assert "`" not in text["loss"]


@pytest.mark.parametrize("name", methods())
def test_the_file_of_a_method_names_its_paper(name):
    assert paper(find_method(name)) or name == "NONE", "no paper in the docstring of its file"


def test_no_text_is_left_without_a_method():
    """Skipped as long as a method is announced and absent."""
    known = {*method_names(), *rules(), *table()}
    absent = [name for name in TEXTS if name not in known]
    if absent:
        pytest.skip(f"docs/methods.yaml has texts for {', '.join(absent)}, which are not here")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
