"""Fuzzing of all that reads what others have written: a UserError or a true value comes out, never a traceback."""

import contextlib
import io
import json
import os
import random
import runpy
import time
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings

from edkd.engine.checkpoint import load_checkpoint, load_weights, save_checkpoint
from edkd.engine.load_cfg import flatten, load_cfg, saved_config
from edkd.engine.teacher_memo import ABOUT, Store, find_memos, segment_name, survey
from edkd.errors import UserError, run_command

CONFIGS, TOOLS = (Path(__file__).parents[2] / name for name in ("configs", "tools"))
SECONDS = float(os.environ.get("EDKD_FUZZ_SECONDS", "150"))  # for each parser, in the full form


@pytest.fixture
def fuzz(extent, figure):
    """fuzz(strategy, check, what, examples): the short form draws so many, the full form goes on for SECONDS."""

    def run(strategy, check, what, examples):
        tried, tracebacks, end = [], 0, time.monotonic() + extent(0, SECONDS)

        def once(data):
            tried.append(1)
            check(data)

        options = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
        try:
            settings(max_examples=examples, derandomize=True, **options)(given(strategy)(once))()
            while time.monotonic() < end:
                number = random.randrange(2**32)
                print(f"{what}: seed {number}")
                seed(number)(settings(max_examples=examples, **options)(given(strategy)(once)))()
        except BaseException:
            tracebacks = 1  # the first one ends it
            raise
        finally:
            figure("R17", f"{len(tried)} fuzzed {what}, {tracebacks} tracebacks")

    return run


def mutations(originals, pieces):
    """Strings or bytes of which some parts are cut out, said twice or replaced by one of the pieces."""

    @st.composite
    def draw(draw):
        text = draw(st.sampled_from(originals))
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(text)))
            end = draw(st.integers(start, min(len(text), start + 20)))
            text = text[:start] + draw(st.one_of(pieces, st.just(2 * text[start:end]))) + text[end:]
        return text

    return draw()


# --- the configuration ----------------------------------------------------------------------------------------------

LEAVES = dict(flatten(load_cfg()))
TAGS = (
    "int",
    "float",
    "bool",
    "null",
    "str",
    "binary",
    "timestamp",
    "set",
    "omap",
    "pairs",
    "map",
    "python/name:os",
)
SIGNS = [
    *"[]{},:#&*!|>'\"%@`-?~\t\n\0\ufeff",
    ": ",
    "\n  ",
    "- ",
    "<<: ",
    "&a ",
    "*a",
    "---\n",
    "\\uD800",
    "''",
]
NUMBERS = [
    "0x" + 4000 * "f",
    "1e999",
    ".nan",
    "-.inf",
    "1:2:3",
    "0o7",
    "1_0",
    "2020-13-45",
    "2020-01-01 10:00:00 +99",
]
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
TEXTS = st.one_of(
    mutations(
        [path.read_text() for path in CONFIGS.rglob("*.yaml")],
        st.sampled_from(MARKS) | st.text(max_size=4),
    ),
    st.lists(st.sampled_from(MARKS) | st.text(max_size=3), max_size=12).map("".join),
    st.tuples(KEYS, VALUES).map(
        lambda pair: (
            f"{pair[0].replace('.', ': {')}: {json.dumps(pair[1])}" + "}" * pair[0].count(".")
        )
    ),
)
PAIRS = st.lists(st.tuples(KEYS, st.sampled_from(MARKS) | st.text() | VALUES.map(str)), max_size=2)


def test_configurations(tmp_path, fuzz):
    def check(data):
        text, pairs = data
        (tmp_path / "x.yaml").write_text(text, errors="surrogatepass")
        with contextlib.suppress(ValueError):
            saved_config(text)
        try:
            cfg = load_cfg(str(tmp_path / "x.yaml"), [word for pair in pairs for word in pair])
        except UserError:
            return
        leaves = dict(flatten(cfg))
        assert {key: type(value) for key, value in leaves.items()} == {
            key: type(LEAVES[key]) for key in LEAVES
        }
        assert saved_config(cfg.dump()) == leaves
        changed = {key for key in LEAVES if leaves[key] != LEAVES[key]}
        assert changed <= {key for key in LEAVES if key.split(".")[-1] in text} | {
            key for key, _ in pairs
        }

    fuzz(st.tuples(st.just("") | TEXTS, st.just([]) | PAIRS), check, "configurations", examples=600)


# --- checkpoints ----------------------------------------------------------------------------------------------------


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
    state, path = {key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "c"
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
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        model.load_state_dict(state)

    fuzz(files, check, "checkpoints", examples=1500)


# --- memos ----------------------------------------------------------------------------------------------------------

MEMO = dict(
    dataset="digits", teacher="resnet14", num_keys=50, num_classes=2, dtype="float32", row_bytes=8
)
ABOUTS = st.one_of(
    st.binary(max_size=50),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from([*MEMO]), JSON).map(
        lambda entry: json.dumps(MEMO | dict([entry])).encode()
    ),
    mutations(
        [json.dumps(MEMO).encode()],
        st.sampled_from([b"{", b'"', b"\\ud800", b"\\n", b"1e999", 5000 * b"["]),
    ),
)


def test_memos(tmp_path, fuzz):
    folder = tmp_path / "digits_resnet14_0123456789abcdef"
    keys, rows = np.arange(0, 50, 7), np.arange(8 * 8, dtype=np.uint8).reshape(8, 8)
    Store(tmp_path, folder.name, MEMO, 1e9, print).add(keys, rows)
    (name,) = (path.name for path in folder.iterdir() if path.name != ABOUT)
    whole = (folder / name).read_bytes()
    segments = st.one_of(
        st.tuples(st.just(name), mutations([whole], st.binary(max_size=12)) | st.just(whole)),
        st.tuples(st.text("0123456789abcdef", min_size=32, max_size=32), st.binary(max_size=100)),
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
        read, found = Store(tmp_path, folder.name, MEMO, 1e9, lambda line: None).read(keys)
        assert not read[~found].any()
        if all(
            path in strange or content == whole for path, content in written
        ):  # but for forged names
            assert (read[found] == rows[found]).all()

    written = st.lists(segments, max_size=3, unique_by=lambda pair: pair[0])
    fuzz(st.tuples(ABOUTS, written), check, "memos", examples=1500)


# --- command lines --------------------------------------------------------------------------------------------------

WORDS = {
    "train": "--cfg --resume --plugin --device cpu SOLVER.LR 0.1 -- -1 --cf --help x.yaml",
    "eval": "-m resnet8 -c -d digits -bs -1 --root --amp bf16 --device cpu --model=",
    "memo": "list verify delete --all --folder memos memo_0123456789abcdef",
    "report": "run --picture x.png .",
    "download": "cifar100 teachers --into here",
}


def test_command_lines(tmp_path, monkeypatch, fuzz):
    """In an empty folder; nothing is trained, evaluated or fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edkd.engine.run.train", lambda *args: None)
    monkeypatch.setattr(
        "edkd.engine.run.evaluate_checkpoint", lambda *args: {"top1": 1.0, "top5": 1.0, "loss": 1.0}
    )
    monkeypatch.setattr("edkd.download.fetch", lambda *args, **options: None)
    mains = {name: runpy.run_path(str(TOOLS / f"{name}.py"))["main"] for name in WORDS}
    word = st.text(max_size=8) | st.binary(max_size=4).map(os.fsdecode)
    word = word.filter(lambda text: "\0" not in text)  # which no system hands over
    lines = st.sampled_from([*WORDS]).flatmap(
        lambda name: st.tuples(
            st.just(name), st.lists(st.sampled_from(WORDS[name].split()) | word, max_size=6)
        )
    )

    def check(data):
        name, words = data
        out = io.TextIOWrapper(io.BytesIO(), "utf-8")
        err = io.TextIOWrapper(
            io.BytesIO(), "utf-8", errors="backslashreplace"
        )  # as Python makes them
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run_command(lambda _: mains[name](words))
            except SystemExit as exit_:
                code = exit_.code
        err.seek(0)
        said = err.read()
        assert (code, said.count("\n")) in ((0, 0), (2, 1)), said
        assert not list(tmp_path.iterdir())

    fuzz(lines, check, "command lines", examples=1500)
