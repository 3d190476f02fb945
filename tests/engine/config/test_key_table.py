"""The table of keys: its snapshot, its owners, nodes written by hand, and its texts.

Run as a script, this file writes the snapshot, keys.txt, and docs/keys.md anew.
"""

import copy
from pathlib import Path

import pytest
from yacs.config import CfgNode

import edkd
from edkd.commands.keys import main, markdown
from edkd.distillers import Distiller, distiller_dict
from edkd.engine import cfg as published
from edkd.engine.config import table as module
from edkd.engine.config.load import load_config
from edkd.engine.config.table import add_owner, allowed, group_names, help_text, select, table
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS, MODELS

PACKAGE = str(Path(edkd.__file__).parent)
SNAPSHOT = Path(__file__).with_name("keys.txt")
DOCUMENT = Path(__file__).parents[3] / "docs" / "keys.md"


def snapshot():
    return "".join(f"{name} = {key.default!r}\n" for name, key in table().items())


def document():
    return f"{markdown()}\n"


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Only what the package registers, and everything as before after the test."""
    for registry in module.REGISTRIES:
        own = {
            key: entry
            for key, entry in registry._entries.items()
            if str(entry.place).startswith(PACKAGE) or not Path(entry.place).exists()
        }
        monkeypatch.setattr(registry, "_entries", own)
    monkeypatch.setattr(module, "_added", {})


def test_the_keys_and_their_defaults_are_those_of_the_snapshot():
    assert snapshot() == SNAPSHOT.read_text(), "if intended: python tests/.../test_key_table.py"


def test_the_document_is_the_output_of_the_command(capsys):
    main(["--markdown"])
    assert capsys.readouterr().out == DOCUMENT.read_text() == document()


def test_every_key_has_a_help_text():
    assert [name for name, key in table().items() if not key.help] == []


def test_every_default_is_allowed():
    assert {name: key.problem(key.default) for name, key in table().items()} == dict.fromkeys(
        table(), ""
    )


def test_the_groups_are_in_their_order():
    groups = [group for group in group_names(table()) if "." not in group]
    assert groups[:6] == ["EXPERIMENT", "DATASET", "DISTILLER", "SOLVER", "TEACHER_MEMO", "LOG"]
    assert {"KD", "DKD", "EDKD"} <= set(groups[6:])
    assert [*load_config()] == groups


def test_help(capsys):
    main(["SOLVER.LR", "kd.loss"])
    text = capsys.readouterr().out
    assert "  SOLVER.LR: 0.05\n      learning rate at its highest (at least 0)\n" in text
    assert "KD.LOSS.KD_WEIGHT: 0.9" in text
    assert "SOLVER.SEED" not in text
    assert "one of base, deepkd, dot" in help_text(["SOLVER.TRAINER"])
    assert "may change on --resume" in help_text(["LOG.KEEP"])
    assert set(help_text().split()) > {f"{name}:" for name in table()}
    with pytest.raises(UserError, match="no key or group SOLVR, did you mean 'SOLVER'"):
        select(["SOLVR"])


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (Key(1, ""), ""),
        (Key(1, "", low=0), "at least 0"),
        (Key(1.0, "", low=0, high=1), "at least 0 and below 1"),
        (Key(1, "", low=1, high=2**31), "at least 1"),
        (Key("a", "", choices=("a", "b")), "one of a, b"),
    ],
)
def test_allowed_values(key, text):
    assert allowed("X.Y", key) == text


class Plain(Distiller):
    """A method whose keys are plain values."""

    defaults = dict(WEIGHT=1.0, KD_WEIGHT=0.5, T="auto", SIZE=(32, 32), INNER=dict(A="x"), L=[])

    def forward_train(self, image, target, **kwargs):
        return None


def test_the_keys_of_a_registered_method():
    distiller_dict["PLAIN"] = Plain
    assert table()["PLAIN.KD_WEIGHT"].low == 0
    cfg = load_config(opts=["PLAIN.SIZE=[8, 8]", "PLAIN.INNER.A=no", "PLAIN.L=[a, 1]"])
    assert (cfg.PLAIN.SIZE, cfg.PLAIN.INNER.A, cfg.PLAIN.L) == ((8, 8), "no", ["a", 1])
    assert load_config().PLAIN.L == Plain.defaults["L"] == []


def test_the_keys_of_a_registered_model():
    @MODELS.register("mynet", family="cifar", defaults={"WIDTH": Key(4, "channels", low=1)})
    def mynet(num_classes, cfg):
        return None

    assert (
        load_config(opts=["DISTILLER.STUDENT=mynet", "MODEL.mynet.WIDTH=8"]).MODEL.mynet.WIDTH == 8
    )
    with pytest.raises(UserError, match="MODEL.mynet.WIDTH is 0, but must be at least 1"):
        load_config(opts=["MODEL.mynet.WIDTH=0"])


def test_what_no_configuration_file_can_hold_is_refused():
    METHODS.register("PLAIN", defaults={"WEIGHTS": {1, 2}})(Plain)
    with pytest.raises(UserError, match=r"defaults of Plain in .*: PLAIN.WEIGHTS is of type set"):
        table()


def test_one_key_has_one_owner():
    METHODS.register("SOLVER", defaults={"LR": 3.0})(Plain)
    with pytest.raises(UserError, match=r"SOLVER.LR is declared by edkd.* and by .*Plain"):
        table()


def test_keys_of_a_plugin():
    add_owner({"EXPERIMENT.NOTE": Key("", "free text"), "MINE.SIZE": Key(3, "of all", low=1)})
    assert load_config(opts=["EXPERIMENT.NOTE", "007"]).EXPERIMENT.NOTE == "007"
    with pytest.raises(UserError, match="MINE.SIZE is 0, but must be at least 1"):
        load_config(opts=["MINE.SIZE", "0"])

    add_owner({"MINE.SIZE": Key(4, "of all")})  # the same module again, edited
    assert load_config().MINE.SIZE == 4
    assert "EXPERIMENT.NOTE" not in table()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NOTE", "has no group; call it GROUP.NOTE"),
        ("SOLVER.LR", "SOLVER.LR is declared by"),
        ("SOLVER.LR.MAX", "SOLVER.LR is a key of .* and also a group"),
        ("SOLVER.DOT", "SOLVER.DOT is a key of .* and also a group"),
    ],
)
def test_keys_of_a_plugin_that_are_refused(name, message):
    before = table()
    with pytest.raises(UserError, match=message):
        add_owner({name: Key("", "free text")})
    assert table() == before


def test_a_node_written_by_hand(monkeypatch):
    """The published steps: a class, an entry of the dictionary, a node, a YAML."""
    by_hand = published.CFG.clone()
    by_hand.MyDistiller = CfgNode()
    by_hand.MyDistiller.hyper1 = 1.0
    by_hand.MyDistiller.KD_WEIGHT = 1.0
    by_hand.SOLVER.LR = 0.2
    monkeypatch.setattr(published, "CFG", by_hand)
    monkeypatch.setitem(
        distiller_dict, "MyDistiller", type("MyDistiller", (Plain,), {"defaults": {}})
    )

    cfg = load_config(opts=["DISTILLER.TYPE", "MyDistiller", "MyDistiller.hyper1", "2"])
    assert (cfg.MyDistiller.hyper1, cfg.SOLVER.LR) == (2.0, 0.2)
    with pytest.raises(UserError, match="MyDistiller.KD_WEIGHT is -1.0, but must be at least 0"):
        load_config(opts=["MyDistiller.KD_WEIGHT", "-1"])


def test_a_node_written_by_hand_that_contradicts_the_class_names_both_places(monkeypatch):
    distiller_dict["PLAIN"] = Plain
    by_hand = published.CFG.clone()
    by_hand.PLAIN = CfgNode(copy.deepcopy(Plain.defaults))
    monkeypatch.setattr(published, "CFG", by_hand)
    assert load_config().PLAIN.WEIGHT == 1.0

    by_hand.PLAIN.WEIGHT = 3.0
    with pytest.raises(UserError, match=r"CFG.PLAIN .*engine/cfg.py but .*Plain in .*; keep one"):
        load_config()


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot())
    DOCUMENT.write_text(document())
