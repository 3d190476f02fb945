"""R17: fuzzing of parsers: a UserError or a correct value, never a traceback."""

import contextlib
import importlib
import io
import json
import os
import random
import time
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings

from edkd.commands._command_line import run_command
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.config.compare import flatten, saved_config
from edkd.engine.config.load import load_config
from edkd.engine.memo.admin import find_memos, survey
from edkd.engine.memo.files import ABOUT, segment_name
from edkd.engine.memo.store import Store
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from tests.runs import CHECKOUT

CONFIGS = sorted((CHECKOUT / "configs").rglob("*.yaml"))
SECONDS = float(os.environ.get("EDKD_FUZZ_SECONDS", "150"))  # for each parser, in the full form


@pytest.fixture
def fuzz(extent, figure):
    """fuzz(strategy, check, what, examples): draws examples; in the full form, for SECONDS.

    The short form draws an eighth of the examples.
    """

    def run(strategy, check, what, examples):
        tried = []
        tracebacks = 0
        number = extent(examples // 8, examples, all_=examples)
        end = time.monotonic() + extent(0, SECONDS)

        def once(data):
            tried.append(1)
            check(data)

        options = {
            "max_examples": number,
            "deadline": None,
            "database": None,
            "suppress_health_check": list(HealthCheck),
        }
        try:
            settings(derandomize=True, **options)(given(strategy)(once))()
            while time.monotonic() < end:
                start = random.randrange(2**32)
                print(f"{what}: seed {start}")
                seed(start)(settings(**options)(given(strategy)(once)))()
        except BaseException:
            tracebacks = 1  # the first one ends it
            raise
        finally:
            figure("R17", f"{len(tried)} fuzzed {what}, {tracebacks} tracebacks")

    return run


def mutations(originals, pieces):
    """Strings or bytes of which some parts are cut out, doubled or replaced by a piece."""

    @st.composite
    def draw(draw):
        text = draw(st.sampled_from(originals))
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(text)))
            end = draw(st.integers(start, min(len(text), start + 20)))
            doubled = st.just(2 * text[start:end])
            text = text[:start] + draw(st.one_of(pieces, doubled)) + text[end:]
        return text

    return draw()


# Configurations.

LEAVES = dict(flatten(load_config()))
TAGS = ["int", "float", "bool", "null", "str", "binary", "timestamp", "set", "omap", "pairs", "map"]
TAGS += ["python/name:os"]
SIGNS = [*"[]{},:#&*!|>'\"%@`-?~\t\n\0\ufeff", ": ", "\n  ", "- ", "<<: ", "&a ", "*a", "---\n"]
SIGNS += ["\\uD800", "''", "_BASE_: x.yaml\n"]
NUMBERS = ["0x" + 4000 * "f", "1e999", ".nan", "-.inf", "1:2:3", "0o7", "1_0", "2020-13-45"]
NUMBERS += ["2020-01-01 10:00:00 +99"]
MARKS = [*SIGNS, *NUMBERS, *(f"!!{tag} " for tag in TAGS)]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
VALUES = JSON | st.sampled_from([*LEAVES.values()])
KEYS = st.sampled_from([*LEAVES]) | mutations([*LEAVES], st.text(max_size=2))


def as_yaml(pair):
    """A key and a value as one line of a file."""
    key, value = pair
    return f"{key.replace('.', ': {')}: {json.dumps(value)}" + "}" * key.count(".")


ORIGINALS = [path.read_text() for path in CONFIGS]
BASE = (CHECKOUT / "configs/cifar100/_base_.yaml").read_text()
TEXTS = st.one_of(
    mutations(ORIGINALS, st.sampled_from(MARKS) | st.text(max_size=4)),
    st.lists(st.sampled_from(MARKS) | st.text(max_size=3), max_size=12).map("".join),
    st.tuples(KEYS, VALUES).map(as_yaml),
)
PAIRS = st.lists(st.tuples(KEYS, st.sampled_from(MARKS) | st.text() | VALUES.map(str)), max_size=2)


def types(leaves):
    """Of the values; a key with a text may take a list of texts."""
    return {key: str if key in TEXT_OR_LIST else type(value) for key, value in leaves.items()}


TEXT_OR_LIST = {"DISTILLER.TEACHER", "DISTILLER.TEACHER_CKPT"}


def test_configurations(tmp_path, fuzz):
    folder = tmp_path / "set" / "method"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):  # the originals name them by relative paths
        (place / "_base_.yaml").write_text(BASE)
    file = folder / "x.yaml"

    def check(data):
        text, pairs = data
        file.write_text(text, errors="surrogatepass")
        with contextlib.suppress(ValueError):
            saved_config(text)
        try:
            cfg = load_config(str(file), [word for pair in pairs for word in pair])
        except UserError:
            return

        leaves = dict(flatten(cfg))
        assert types(leaves) == types(LEAVES)
        saved = saved_config(cfg.dump())
        assert saved == {key: as_list(value) for key, value in leaves.items()}

        changed = {key for key in LEAVES if leaves[key] != LEAVES[key]}
        in_text = {key for key in LEAVES if key.split(".")[-1] in text + BASE}
        assert changed <= in_text | {key.partition("=")[0] for key, _ in pairs}

    fuzz(st.tuples(st.just("") | TEXTS, st.just([]) | PAIRS), check, "configurations", examples=600)


def as_list(value):
    return list(value) if isinstance(value, tuple) else value


# Checkpoints.

OPCODES = b".()]}acRbqrtu\x80\x81\x85\x86\x87\x88\x8a\x8bKMJGXhjQ"  # what a pickle is made of


def repacked(whole, pickle):
    """A zip with another pickle, and the right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle if name.endswith("data.pkl") else old.read(name))
    return buffer.getvalue()


def pickled(whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def test_checkpoints(tmp_path, fuzz):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    path = tmp_path / "c"
    save_checkpoint({"model": state, "epoch": 3, "history": [{"loss": 0.5}]}, path)
    whole = path.read_bytes()
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    older = path.read_bytes()

    pieces = st.sampled_from([bytes([code]) for code in OPCODES]) | st.binary(max_size=6)
    files = st.one_of(
        st.binary(max_size=200),
        mutations([whole], pieces),
        mutations([older], pieces),
        mutations([pickled(whole)], pieces).map(lambda pickle: repacked(whole, pickle)),
    )

    def check(content):
        path.write_bytes(content)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            assert isinstance(load_checkpoint(path), dict)
            load_weights(model, path)
        except UserError:
            now = model.state_dict()
            assert all(torch.equal(value, before[key]) for key, value in now.items())
        model.load_state_dict(state)

    fuzz(files, check, "checkpoints", examples=1500)


# Teacher caches.

MEMO = {
    "dataset": "digits",
    "teacher": "resnet14",
    "num_keys": 50,
    "num_classes": 2,
    "dtype": "float32",
    "row_bytes": 8,
}
BRACKETS = [b"{", b'"', b"\\ud800", b"\\n", b"1e999", 5000 * b"["]
ABOUTS = st.one_of(
    st.binary(max_size=50),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from([*MEMO]), JSON).map(
        lambda entry: json.dumps(MEMO | dict([entry])).encode()
    ),
    mutations([json.dumps(MEMO).encode()], st.sampled_from(BRACKETS)),
)


def silent(line):
    """For the lines of a store."""


def test_teacher_caches(tmp_path, fuzz):
    folder = tmp_path / "digits_resnet14_0123456789abcdef"
    keys = np.arange(0, 50, 7)
    rows = np.arange(8 * 8, dtype=np.uint8).reshape(8, 8)
    Store(tmp_path, folder.name, MEMO, 1e9, silent).add(keys, rows)
    (name,) = (path.name for path in folder.iterdir() if path.name != ABOUT)
    whole = (folder / name).read_bytes()

    hexadecimal = st.text("0123456789abcdef", min_size=32, max_size=32)
    segments = st.one_of(
        st.tuples(st.just(name), mutations([whole], st.binary(max_size=12)) | st.just(whole)),
        st.tuples(hexadecimal, st.binary(max_size=100)),
        (st.binary(max_size=100) | mutations([whole], st.binary(max_size=12))).map(
            lambda content: (segment_name(folder, content), content)
        ),
    )

    def check(data):
        about, written = data
        for path in folder.iterdir():
            path.unlink()
        for path, content in [(ABOUT, about), *written]:
            (folder / path).write_bytes(content)

        strange = {path for path, content in written if segment_name(folder, content) != path}
        with contextlib.suppress(UserError):
            line, damaged = survey(*find_memos(tmp_path), verify=True)
            assert line.isprintable()
            assert {path.name for path in damaged} == strange

        read, found = Store(tmp_path, folder.name, MEMO, 1e9, silent).read(keys)
        assert not read[~found].any()
        if all(path in strange or content == whole for path, content in written):  # none is forged
            assert (read[found] == rows[found]).all()

    written = st.lists(segments, max_size=3, unique_by=lambda pair: pair[0])
    fuzz(st.tuples(ABOUTS, written), check, "teacher caches", examples=1500)


# Command lines.

WORDS = {
    "train": "--cfg --resume --plugin --device cpu SOLVER.LR 0.1 -- -1 --cf --help x.yaml",
    "eval": "-m resnet8 -c -d digits -bs -1 --root --amp bf16 --device cpu --model= --plugin",
    "memo": "list verify delete --all --folder memos memo_0123456789abcdef",
    "report": "run --picture x.png .",
    "download": "cifar100 teachers --into here",
    "keys": "SOLVER DKD.BETA --markdown --plugin x.py",
}


def test_command_lines(tmp_path, monkeypatch, fuzz):
    """In an empty folder; nothing is trained, evaluated or downloaded."""
    monkeypatch.chdir(tmp_path)
    figures = {"top1": 1.0, "top5": 1.0, "loss": 1.0}
    monkeypatch.setattr("edkd.engine.run.train", lambda *args: None)
    monkeypatch.setattr("edkd.engine.run.evaluate_checkpoint", lambda *args: figures)
    monkeypatch.setattr("edkd.download.fetch", lambda *args, **options: None)

    mains = {name: importlib.import_module(f"edkd.commands.{name}").main for name in WORDS}
    word = st.text(max_size=8) | st.binary(max_size=4).map(os.fsdecode)
    word = word.filter(lambda text: "\0" not in text)  # no system passes it on
    word = word.filter(lambda text: not os.path.isdir(text))  # as /, with the runs of other tests
    lines = st.sampled_from([*WORDS]).flatmap(
        lambda name: st.tuples(
            st.just(name), st.lists(st.sampled_from(WORDS[name].split()) | word, max_size=6)
        )
    )

    def check(data):
        name, words = data
        out = io.TextIOWrapper(io.BytesIO(), "utf-8")
        err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")  # as Python's own
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run_command(mains[name], words)
            except SystemExit as exit_:
                code = exit_.code
        err.seek(0)
        text = err.read()
        assert (code, text.count("\n")) in ((0, 0), (2, 1)), text
        assert not list(Path(tmp_path).iterdir())

    fuzz(lines, check, "command lines", examples=1500)
