"""What a user, a damaged disk or an attacker may hand over: refused in a line that names it, never believed or run."""

import argparse
import gzip
import io
import itertools
import json
import os
import pickle
import random
import shutil
import string
import subprocess
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from faults import tree
from PIL import Image

from edkd import download
from edkd.distillers import distiller_dict
from edkd.engine.checkpoint import load_checkpoint, load_weights, save_checkpoint
from edkd.engine.load_cfg import flatten, load_cfg
from edkd.engine.teacher_memo import Store, delete_memo, segment_files, survey
from edkd.errors import UserError
from edkd.models import get_model, model_names

CONFIGS = Path(__file__).parents[2] / "configs"


# --- R5: damaged and foreign checkpoints ----------------------------------------------------------------------------


def bits(value):
    """A value that is equal for the same content alone, bit by bit, whatever is nested."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return (
        [bits(item) for item in value] if isinstance(value, (list, tuple)) else (type(value), value)
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run's checkpoint of few numbers: damage meets its directory, its names and its structure."""
    network = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = {
        "epoch": 1,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": {},
    }
    path = tmp_path_factory.mktemp("small") / "latest"
    save_checkpoint(
        state | {"history": [{"epoch": 1, "test_top1": 0.5}], "config": "SOLVER:\n  LR: 0.1\n"},
        path,
    )
    return path


def damaged(whole, flips, cuts):
    """Copies of some bytes, each with a bit flipped or cut short."""
    draw = random.Random(len(whole))
    for _ in range(flips):
        copy = bytearray(whole)
        copy[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        yield copy
    for _ in range(cuts):
        yield whole[: draw.randrange(len(whole))]


def test_a_damaged_checkpoint_is_refused_or_the_same(tmp_path, teacher, small, figure):
    believed, tried = 0, 0
    for original in (teacher, small):
        expected = bits(load_checkpoint(original))
        for content in damaged(original.read_bytes(), flips=500, cuts=100):
            (tmp_path / "c").write_bytes(content)
            tried += 1
            with suppress(UserError):
                believed += bits(load_checkpoint(tmp_path / "c")) != expected
    figure("R5", f"{believed} of {tried} damaged checkpoints silently accepted with other content")
    assert not believed


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def older(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def arrays(state):
    buffer = io.BytesIO()
    np.savez(buffer, **{key: value.numpy() for key, value in state.items()})
    return buffer.getvalue()


def floats(state, change):
    """The weights of a state with something done to those that are no counters."""
    return saved(
        {
            "model": {
                key: change(value) if value.is_floating_point() else value
                for key, value in state.items()
            }
        }
    )


FOREIGN = {  # name -> the bytes of a file, made of a model's state; {}: a folder
    "nothing": lambda state: b"",
    "text": lambda state: b"the weights are elsewhere",
    "zeros": lambda state: bytes(4096),
    "a picture": lambda state: picture(),
    "a page of a server": lambda state: b"<!DOCTYPE html><html><title>404 Not Found</title></html>",
    "a pointer of Git LFS": lambda state: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ),
    "JSON": lambda state: json.dumps({"model": {"conv1.weight": [0.0]}}).encode(),
    "YAML": lambda state: (CONFIGS / "cifar100/kd.yaml").read_bytes(),
    "a folder": lambda state: {},
    "a zip of something else": lambda state: zipped(readme="nothing of torch"),
    "arrays of NumPy": arrays,
    "a checkpoint in gzip": lambda state: gzip.compress(saved({"model": state})),
    "a pickled list": lambda state: pickle.dumps([1, 2], protocol=2),
    "a pickled dictionary": lambda state: pickle.dumps({"model": {"fc.bias": 10 * [0.0]}}),
    "a list": lambda state: saved(list(state.values())),
    "a tensor": lambda state: saved(state["fc.bias"]),
    "a number": lambda state: saved(3),
    "numbers in place of tensors": lambda state: saved({"model": dict.fromkeys(state, 0.0)}),
    "the older format, cut short": lambda state: older({"model": state})[:-1000],
    "another architecture": lambda state: saved(
        {"model": get_model("cifar", "vgg8", 10).state_dict()}
    ),
    "another depth": lambda state: saved(
        {"model": get_model("cifar", "resnet14", 10).state_dict()}
    ),
    "another number of classes": lambda state: saved(
        {"model": get_model("cifar", "resnet8", 100).state_dict()}
    ),
    "complex numbers": lambda state: floats(state, lambda value: value.to(torch.complex64)),
    "floats of 8 bits": lambda state: floats(state, lambda value: value.to(torch.float8_e4m3fn)),
    "integers": lambda state: floats(state, lambda value: value.to(torch.int32)),
    "sparse tensors": lambda state: floats(state, lambda value: value.to_sparse()),
    "tensors without content": lambda state: floats(state, lambda value: value.to("meta")),
}


def test_a_foreign_file_is_no_checkpoint(tmp_path, figure):
    model = get_model("cifar", "resnet8", 10)
    before = bits(model.state_dict())
    believed = []
    for number, (name, content) in enumerate(FOREIGN.items()):
        path = tmp_path / str(number)
        write(path, content(model.state_dict()))
        with suppress(UserError):
            load_weights(model, path)
            believed.append(name)
        assert bits(model.state_dict()) == before, name
    figure("R5", f"{len(believed)} of {len(FOREIGN)} foreign files accepted as a checkpoint")
    assert believed == []


def write(path, content):
    """A file of some bytes or text, a folder of what a dictionary names."""
    if isinstance(content, dict):
        path.mkdir(parents=True, exist_ok=True)
        for name, inner in content.items():
            write(path / name, inner)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


# --- R6: malicious inputs -------------------------------------------------------------------------------------------


class Malicious:
    """Unpickled by a loader that believes it, it makes a call."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


class Options(argparse.Namespace):
    """No argparse.Namespace, though it looks like one."""


CALLS = {
    "os.system": lambda mark: Malicious(os.system, f"touch {mark}"),
    "eval": lambda mark: Malicious(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Malicious(exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Malicious(open, str(mark), "w"),
    "subprocess": lambda mark: Malicious(subprocess.call, ["touch", str(mark)]),
}
HIDDEN = {
    "alone": lambda evil: evil,
    "among weights": lambda evil: {
        "model": {"conv1.weight": torch.ones(3), "bn1.weight": evil, "fc": torch.ones(2)}
    },
    "as a key": lambda evil: {"model": torch.ones(3), "opt": [({"lr": 0.1}, evil)]},
    "in a Namespace": lambda evil: {"model": {}, "opt": argparse.Namespace(lr=evil)},
    "in what looks like one": lambda evil: {"model": {}, "opt": Options(lr=evil)},
}
FORMATS = {"zip": saved, "older": older, "pickle": pickle.dumps}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_checkpoint_runs_nothing(tmp_path, figure):
    executed, tried = [], 0
    for call, hidden, kind in itertools.product(CALLS, HIDDEN, FORMATS):
        mark, path = tmp_path / "executed", tmp_path / "c"
        path.write_bytes(FORMATS[kind](HIDDEN[hidden](CALLS[call](mark))))
        tried += 1
        with pytest.raises(UserError, match="is damaged, or no checkpoint of tensors"):
            load_checkpoint(path)
        if mark.exists():
            executed.append((call, hidden, kind))
        pickle.loads(path.read_bytes()) if kind == "pickle" else torch.load(
            path, weights_only=False
        )
        assert mark.exists(), "a loader that believes it does run it: the attack is one"
        mark.unlink()
    figure("R6", f"{len(executed)} of {tried} malicious checkpoints executed")
    assert executed == []


TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/object/apply:subprocess.call [[touch, {mark}]]",
    "!!python/object/apply:builtins.eval [\"open('{mark}', 'w')\"]",
    "!!python/object/apply:builtins.open ['{mark}', w]",
    "!!python/object/new:tuple [!!python/object/new:map [!!python/name:eval , [\"open('{mark}', 'w')\"]]]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!!python/tuple [1, 2]",
]


def test_a_malicious_configuration_runs_nothing(tmp_path, tool, words, figure):
    """As --cfg, as a value of the command line, and as what a run has saved, for --resume and for the report."""
    executed, tried = [], 0
    mark, file, run = tmp_path / "executed", tmp_path / "x.yaml", tmp_path / "distill" / "a"
    write(run, {"result.json": "{}", "metrics.jsonl": "{}\n"})
    for tag in (tag.format(mark=mark) for tag in TAGS):
        for text in (tag, f"SOLVER:\n  LR: {tag}\n"):
            file.write_text(text)
            (run / "config.yaml").write_text(text)
            before = tree(tmp_path)
            for command in (
                ["train", "--cfg", file, *words, "b"],
                ["train", *words, "b", "SOLVER.LR", text],
                ["train", "--resume", *words, "a"],
                ["report", run],
            ):
                tried += 1
                assert tool(*command).code == 2
                if tree(tmp_path) != before:
                    executed.append(command)
    for name in ("x.py", "script.yaml"):
        (tmp_path / name).write_text(f"open({str(mark)!r}, 'w')")
        tried += 1
        assert tool("train", "--cfg", tmp_path / name, *words, "b").code == 2
    figure("R6", f"{len(executed) + mark.exists()} of {tried} malicious configurations executed")
    assert executed == []
    assert not mark.exists()
    yaml.unsafe_load(TAGS[0].format(mark=mark))
    assert mark.exists(), "a loader that believes it does run it: the attack is one"


def test_the_name_of_a_run_leads_nowhere_else(tmp_path, tool, figure):
    outside = tmp_path / "outside"
    prefix = tmp_path / "o"
    write(outside, {"thesis.tex": "mine"})
    (prefix / "distill").mkdir(parents=True)
    (prefix / "distill" / "link").symlink_to(outside)
    (prefix / "project").symlink_to(outside)
    names = [
        *(
            ("NAME", name)
            for name in ("../../x", "..", ".", str(outside), "a/../../../outside", "link", "link/x")
        ),
        *(("TAG", name) for name in ("../../outside/x", str(outside / "x"))),
        *(
            ("PROJECT", name)
            for name in ("..", "../outside", str(outside), "project", "distill/../..")
        ),
    ]
    before, accepted = tree(tmp_path), []
    for key, name in names:
        refusal = tool("train", "LOG.PREFIX", prefix, f"EXPERIMENT.{key}", name)
        if refusal.code != 2 or "not inside LOG.PREFIX" not in refusal.err:
            accepted.append((key, name, refusal))
    figure("R6", f"{len(accepted)} of {len(names)} names of runs led outside")
    assert accepted == []
    assert tree(tmp_path) == before


def member(name, kind=tarfile.REGTYPE, link="", **more):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = 4 if kind == tarfile.REGTYPE else 0
    for key, value in more.items():
        setattr(info, key, value)
    return info


ARCHIVES = {
    "a member above": [member("../evil")],
    "a member above, after a harmless one": [member("good"), member("good/../../evil")],
    "an absolute member": [member("{outside}/evil")],
    "a folder above": [member("../evil", tarfile.DIRTYPE)],
    "a link, and a file through it": [
        member("link", tarfile.SYMTYPE, "{outside}"),
        member("link/evil"),
    ],
    "a relative link, and a file through it": [
        member("link", tarfile.SYMTYPE, "../outside"),
        member("link/evil"),
    ],
    "a link to a file, and a file of its name": [
        member("x", tarfile.SYMTYPE, "{outside}/thesis.tex"),
        member("x"),
    ],
    "a hard link": [member("x", tarfile.LNKTYPE, "../outside/thesis.tex"), member("x")],
    "a device": [member("x", tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "a pipe": [member("x", tarfile.FIFOTYPE)],
    "a name with a zero in it": [member("x", pax_headers={"path": "a\0b"})],
    "a zip": None,
}


def test_an_archive_unpacks_nowhere_else(tmp_path, figure):
    outside, folder, escaped = tmp_path / "outside", tmp_path / "folder", []
    write(outside, {"thesis.tex": "mine"})
    before = tree(outside)
    for name, members in ARCHIVES.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        archive = folder / "a.tar"
        if members is None:
            archive.write_bytes(zipped(**{"../evil": "evil"}))
        else:
            with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
                for info in members:
                    info = info.replace(
                        name=info.name.format(outside=outside),
                        linkname=info.linkname.format(outside=outside),
                    )
                    tar.addfile(info, io.BytesIO(b"evil"))
        with suppress(UserError):  # an absolute name may become one inside
            download.unpack(archive, folder, {})
        plain = all(
            path.is_dir() or path.is_file() for path in folder.rglob("*") if not path.is_symlink()
        )
        linked = any(path.is_symlink() for path in folder.rglob("*"))
        if (
            tree(outside) != before
            or sorted(tmp_path.iterdir()) != [folder, outside]
            or linked
            or not plain
        ):
            escaped.append(name)
    figure("R6", f"{len(escaped)} of {len(ARCHIVES)} malicious archives wrote outside")
    assert escaped == []


def test_a_malicious_memo_or_run_touches_nothing_else(tmp_path, tool, figure):
    """A segment that is a link elsewhere; code where JSON belongs."""
    mark, outside, about = (
        tmp_path / "executed",
        tmp_path / "outside",
        {"num_keys": 9, "row_bytes": 4},
    )
    code = f"__import__('os').system('touch {mark}')"
    write(outside, {"thesis.tex": 64 * "x"})
    folder = tmp_path / "memos" / "memo_0123456789abcdef"
    Store(folder.parent, folder.name, about, 1e9, print).add(
        np.array([1]), np.ones((1, 4), np.uint8)
    )
    (folder / ("0" * 32)).symlink_to(outside / "thesis.tex")
    (folder / ("1" * 32)).symlink_to(outside)
    Store(folder.parent, folder.name, about, 1e9, lambda line: None).read(np.arange(9))
    assert len(segment_files(folder)) == 1
    (folder / ("0" * 32)).symlink_to(outside / "thesis.tex")
    for content in (
        code,
        json.dumps(
            {"row_bytes": code, "num_keys": 9, "teacher": code, "dataset": "x", "dtype": "y"}
        ),
    ):
        (folder / "about.json").write_text(content)
        with pytest.raises(UserError, match=r"about.json is damaged; delete the folder"):
            survey(folder, verify=True)
    (folder / ("1" * 32)).unlink()
    delete_memo(folder)
    run = tmp_path / "run"
    for name in ("result.json", "metrics.jsonl"):
        write(
            run,
            {
                "result.json": '{"last_test_top1": 1}',
                "metrics.jsonl": '{"test_top1": 1}',
                "config.yaml": "{}",
            },
        )
        (run / name).write_text(code)
        assert "holds no finished run" in tool("report", run).err
    figure("R6", f"{int(mark.exists())} of 6 malicious memos and runs executed")
    assert not mark.exists()
    assert tree(outside) == {"thesis.tex": 64 * b"x"}


# --- R7: mistakes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def wrongly_taken(tool, tmp_path, recwarn):
    """wrongly_taken(words, *named): "" where a command is refused by one line that names it all and writes nothing."""

    def run(words, *named):
        before = tree(tmp_path), sorted(tmp_path.rglob("*"))
        recwarn.clear()
        try:
            done = tool(*words)
        except Exception as error:  # what a user would see as a traceback
            return f"{words}: traceback of {error!r}"
        lines = done.err.splitlines() + [
            str(warning.message) for warning in recwarn if warning.category is UserWarning
        ]
        if done.code != 2 or len(lines) != 1 or not lines[0].startswith("edkd: error: "):
            return f"{words}: {done.code}, {lines}"
        if lacking := [word for word in named if word not in lines[0]]:
            return f"{words}: {lines} does not say {lacking}"
        return (
            ""
            if (tree(tmp_path), sorted(tmp_path.rglob("*"))) == before
            else f"{words}: something was written"
        )

    return run


LAUGHS = "\n".join(f"  x{i}: &x{i} [{', '.join(9 * [f'*x{i - 1}'])}]" for i in range(1, 12))
FILES = [  # the content of x.yaml, and what the line names
    ("SOLVER:\n\tLR: 0.1\n", "x.yaml"),
    ("SOLVER: {LR: 0.1\n", "x.yaml"),
    ("SOLVER:\nLR: 0.1\n", "unknown key LR"),
    ("SOLVER:\n  LR 0.1\n", "SOLVER ("),
    ("SOLVER:\n  LR: 0.1\n  LR: 0.2\n", "the key LR is written twice"),
    ("- SOLVER\n", "x.yaml"),
    ("<<<<<<< HEAD\nSOLVER:\n=======\n", "x.yaml"),
    ("SOLVER:\n  LR: 0.1\n---\nSOLVER:\n  LR: 0.2\n", "x.yaml"),
    ("SOLVER:\n  LR: 0,1\n", "SOLVER.LR"),
    ("SOLVER:\n  LR: '0.1'\n", "SOLVER.LR"),
    ("SOLVER:\n  LR: {START: 0.1}\n", "SOLVER.LR"),
    ("SOLVER:\n  LR: *base\n", "x.yaml"),
    ("SOLVER:\n  LR: !!bool x\n", "x.yaml"),
    ("SOLVER:\n  LR: 0x" + 5000 * "f", "x.yaml"),
    ('SOLVER:\n  LR: "0.', "x.yaml"),
    ("SOLVER:\n  EPOCHS: 240.0\n", "SOLVER.EPOCHS"),
    ("SOLVER:\n  EPOCHS:\n", "SOLVER.EPOCHS"),
    ("SOLVER:\n  NESTEROV: 1\n", "SOLVER.NESTEROV"),
    ("SOLVER:\n  LR_DECAY_STAGES: 150\n", "SOLVER.LR_DECAY_STAGES"),
    (f"SOLVER:\n  LR_DECAY_STAGES: &x0 [1]\n{LAUGHS}\n", "unknown key SOLVER.x1"),
    (f"KD:\n  TEMPERATURE:\n  - &x0 1\n{LAUGHS.replace('  x', '  - x')}", "KD.TEMPERATURE"),
    ("solver:\n  LR: 0.1\n", "did you mean 'SOLVER'"),
    ("DKD:\n  TEMPERATURE: 4\n", "unknown key DKD.TEMPERATURE"),
    ('EXPERIMENT:\n  TAG: "\\uD800"\n', "EXPERIMENT.TAG"),
    ("SOLVER:\n  LR: 0.1\n".encode("utf-16"), "x.yaml"),
    (bytes(100), "x.yaml"),
    ({}, "x.yaml"),
]
NOBODY = "~nobody-is-called-so/data"
PAIRS = [
    (["SOLVER.LR"], "'SOLVER.LR' has no partner"),
    (["SOLVER.LR=0.1", "SOLVER.EPOCHS=3"], "did you mean 'SOLVER.LR'"),
    (["", "1"], "unknown key (command line)"),
    (["SOLVER..LR", "1"], "unknown key SOLVER. (command line)"),
    (["SOLVER.LR", "1e-3x"], "SOLVER.LR"),
    (["SOLVER.LR", ".inf"], "SOLVER.LR"),
    (["SOLVER.LR_DECAY_STAGES", "[1, 2"], "SOLVER.LR_DECAY_STAGES"),
    (["SOLVER.BETAS", "[0.9, 0.99, 0.999]"], "SOLVER.BETAS"),
    (["SOLVER.BATCH_SIZE", "0"], "SOLVER.BATCH_SIZE"),
    (["SOLVER.SEED", "-1"], "SOLVER.SEED"),
    (["SOLVER.TYPE", "sgd"], "did you mean 'SGD'"),
    (["SOLVER.AMP", "fp16", "--device", "cpu"], "SOLVER.AMP"),
    (["SOLVER.CUDA_GRAPH", "True", "SOLVER.AMP", "fp16"], "SOLVER.CUDA_GRAPH"),
    (["SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0"], "SOLVER.NESTEROV"),
    (["DATASET.VAL_SPLIT", "0.999"], "DATASET.VAL_SPLIT"),
    (["DATASET.TYPE", "imagenet"], "DISTILLER.STUDENT is 'resnet8'"),
    (
        ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "resnet20", "DISTILLER.TEACHER_CKPT", ""],
        "DISTILLER.TEACHER",
    ),
    (["EXPERIMENT.NAME", 300 * "x"], "EXPERIMENT.NAME"),
    (["EXPERIMENT.PROJECT", 300 * "x"], "EXPERIMENT.PROJECT"),
    (["EXPERIMENT.NAME", "a\0b"], "EXPERIMENT.NAME"),
    (["DATASET.TYPE", "cifar10", "DATASET.ROOT", NOBODY], f"DATASET.ROOT is '{NOBODY}'"),
    (["LOG.PREFIX", 5000 * "x"], "LOG.PREFIX"),
    (["TEACHER_MEMO.FOLDER", "a\0b"], "TEACHER_MEMO.FOLDER"),
]


def test_mistakes_in_configurations(tmp_path, words, wrongly_taken, figure):
    wrong = []
    for number, (content, named) in enumerate(FILES):
        file = tmp_path / str(number) / "x.yaml"
        write(file, content)
        wrong.append(wrongly_taken(["train", "--cfg", file, *words, "a"], named))
    wrong += [wrongly_taken(["train", *words, "a", *pairs], named) for pairs, named in PAIRS]
    report(wrong, "configurations", figure)


def report(wrong, what, figure):
    figure(
        "R7",
        f"{len(wrong) - wrong.count('')} of {len(wrong)} malformed {what} not refused in one line",
    )
    assert [line for line in wrong if line] == []


EVALUATED = [  # the name of a file of FOREIGN, what the line names beside its path
    ("nothing", "is damaged"),
    ("a page of a server", "is damaged"),
    ("a pointer of Git LFS", "is damaged"),
    ("a picture", "is damaged"),
    ("a folder", "-c: no weights of resnet8 at"),
    ("a pickled dictionary", "is damaged"),
    ("the older format, cut short", "is damaged"),
    ("another architecture", "another architecture"),
    ("another number of classes", "fc.weight is (100, 64) there but (10, 64) here"),
    ("floats of 8 bits", "conv1.weight"),
]
TEACHERS = [  # what is done to the teacher's weights, what the line names beside the path
    (lambda state: saved({"model": state})[:-1], "is damaged"),
    (lambda state: saved({"model": state})[100:], "is damaged"),
    (lambda state: saved({"model": state}).replace(b"conv1", b"conv9"), "is damaged"),
    (lambda state: saved({"epoch": 3}), "it lacks bn1.bias"),
    (lambda state: saved([state]), "holds list"),
    (lambda state: saved({"model": state | {"fc.bias": torch.ones(11)}}), "fc.bias is (11,) there"),
    (
        lambda state: saved({"model": {key: state[key] for key in state if key != "fc.bias"}}),
        "lacks fc.bias",
    ),
    (lambda state: saved({"model": state | {"extra.weight": torch.ones(1)}}), "has extra.weight"),
    (lambda state: saved({"model": {f"backbone.{key}": state[key] for key in state}}), "backbone"),
    (lambda state: FOREIGN["sparse tensors"](state), "conv1.weight"),
]


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


LATEST = [  # what is done to `latest` and the one before it, what the line names
    (lambda state: b"", "latest.previous is damaged"),
    (lambda state: saved(state)[:5000], "latest.previous is damaged"),
    (lambda state: saved({"model": state["model"]}), "'latest' in"),
    (lambda state: saved(without(state, "history")), "'latest' in"),
    (lambda state: saved(without(state, "optimizer")), "'latest' in"),
    (lambda state: saved(state | {"history": 3}), "'latest' in"),
    (
        lambda state: saved(state | {"history": 4 * state["history"]}),
        "SOLVER.EPOCHS is 3, but 4 are done",
    ),
    (
        lambda state: saved(state | {"model": get_model("cifar", "resnet14", 10).state_dict()}),
        "'latest' in",
    ),
    (
        lambda state: saved(state | {"identity": state["identity"] | {"precision": "float16"}}),
        "precision float16",
    ),
    (
        lambda state: saved(
            state | {"identity": state["identity"] | {"number of training images": 7}}
        ),
        "images 7",
    ),
    (lambda state: saved(state | {"progress": {"step": 3}}), "'latest' in"),
]


def test_mistakes_in_checkpoints(tmp_path, words, train, wrongly_taken, figure):
    wrong, evaluate = [], ["eval", "-m", "resnet8", "-d", "digits", "-c"]
    student, teacher = (
        get_model("cifar", name, 10).state_dict() for name in ("resnet8", "resnet14")
    )
    for number, (name, named) in enumerate(EVALUATED):
        write(tmp_path / f"{number}.pth", FOREIGN[name](student))
        wrong.append(wrongly_taken([*evaluate, tmp_path / f"{number}.pth"], named, f"{number}.pth"))
    wrong.append(wrongly_taken([*evaluate, 300 * "x"], "-c: no weights"))
    for change, named in TEACHERS:
        write(tmp_path / "teacher.pth", change(teacher))
        pairs = ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", tmp_path / "teacher.pth"]
        wrong.append(wrongly_taken(["train", *words, "taught", *pairs], named, "teacher.pth"))
    assert train("a", "SOLVER.EPOCHS", "1", "SOLVER.LR_DECAY_STAGES", "[]").code == 0
    run = tmp_path / "distill" / "a"
    resume = ["train", "--resume", *words, "a", "SOLVER.LR_DECAY_STAGES", "[]"]
    state = load_checkpoint(run / "latest")
    for change, named in LATEST:
        for name in ("latest", "latest.previous"):
            write(run / name, change(state))
        wrong.append(wrongly_taken(resume, named))
    for name in ("latest", "latest.previous"):
        (run / name).unlink()
    wrong.append(wrongly_taken(resume, "latest is gone"))
    for content in ("[", "SOLVER: 3\n", b"\xff\xfe"):
        write(run / "config.yaml", content)
        wrong.append(wrongly_taken(resume, "--resume", str(run)))
    report(wrong, "checkpoints", figure)


FINISHED = {
    "result.json": '{"last_test_top1": 1, "best_test_top1": 1, "parameters": 3}',
    "config.yaml": "LOG: {}\n",
}
FINISHED |= {"metrics.jsonl": '{"epoch": 1, "test_top1": 1.0}\n'}
RUNS = [  # what a finished run holds in place of the above
    {"result.json": "{"},
    {"result.json": "[]"},
    {"result.json": '{"last_test_top1": 1, "best_test_top1": 1}'},
    {"result.json": '{"last_test_top1": "high", "best_test_top1": 1, "parameters": 3}'},
    {"result.json": 5000 * "["},
    {"metrics.jsonl": ""},
    {"metrics.jsonl": '{"epoch": 1}\n'},
    {"metrics.jsonl": '{"epoch": 1, "test_top1": "high"}\n'},
    {"metrics.jsonl": '{"epoch": 1, "test_top1": NaN}\n'},
    {"metrics.jsonl": '{"epoch": 1, "test_top1": 1.0}\n{"epoch": 2, "te'},
    {"config.yaml": "LOG: {\n"},
    {"config.yaml": b"\xff"},
]


def test_mistakes_in_runs_to_report(tmp_path, tool, wrongly_taken, figure):
    write(tmp_path / "run", FINISHED)
    assert tool("report", tmp_path / "run", "--picture", tmp_path / "curves.png").code == 0
    wrong = []
    for content in RUNS:
        write(tmp_path / "run", FINISHED | content)
        wrong.append(
            wrongly_taken(
                ["report", tmp_path / "run", "--picture", tmp_path / "x.png"], str(tmp_path / "run")
            )
        )
    report(wrong, "runs", figure)


IMAGES = {"a": {"1.png": picture()}, "b": {"1.png": picture()}}
SETS = [  # DATASET.TYPE, what DATASET.ROOT holds (`write`), what the line names
    ("cifar10", "a file", "cifar-10-batches-py"),
    ("cifar10", {}, "cifar-10-batches-py"),
    ("cifar10", {"cifar-10-python.tar.gz": b"\x1f\x8b"}, "tools/download.py cifar10"),
    ("cifar10", {"cifar-10-batches-py": "a file"}, "no data set at"),
    ("cifar10", {"cifar-10-batches-py": {}}, "cifar-10-batches-py is damaged"),
    (
        "cifar10",
        {"cifar-10-batches-py": {"data_batch_1": pickle.dumps({"data": []})}},
        "cifar-10-batches-py is damaged",
    ),
    ("cifar10", {"cifar-10-batches-py": {"data_batch_1": {}}}, "cifar-10-batches-py is damaged"),
    ("cifar100", {"cifar-10-batches-py": {}}, "no data set at"),
    (
        "cifar100",
        {"cifar-100-python": {"train": b"", "test": b"", "meta": b""}},
        "cifar-100-python is damaged",
    ),
    ("imagenet", "a file", "no folder"),
    ("imagenet", {"val": IMAGES}, "/train"),
    ("imagenet", {"train": IMAGES}, "/val"),
    ("imagenet", {"train": IMAGES, "val": "a file"}, "/val"),
    ("imagenet", {"train": {"a": {}}, "val": IMAGES}, "/train"),
    ("imagenet", {"train": {}, "val": IMAGES}, "/train"),
    ("imagenet", {"train": IMAGES["a"], "val": IMAGES}, "/train"),
    ("imagenet", {"train": {"a": {"1.txt": "a picture"}}, "val": IMAGES}, "/train"),
    ("imagenet", {"train": IMAGES, "val": {"a": IMAGES["a"]}}, "only one holds 'b'"),
    (
        "imagenet",
        {"train": IMAGES, "val": {"a": IMAGES["a"], "B": IMAGES["b"]}},
        "only one holds 'B'",
    ),
]
PICTURES = [
    b"",
    b"a picture",
    picture()[:60],
    picture()[:16] + b"\x7f\xff\xff\xff" + picture()[20:],
]
"""What a file of an image may hold: it is read when its turn comes."""


def test_mistakes_in_data_sets(tmp_path, words, wrongly_taken, figure):
    wrong = []
    for number, (kind, content, named) in enumerate(SETS):
        root = tmp_path / str(number)
        write(root, content)
        student = "ResNet18" if kind == "imagenet" else "resnet8"
        pairs = ["DATASET.TYPE", kind, "DATASET.ROOT", root, "DISTILLER.STUDENT", student]
        wrong.append(wrongly_taken(["train", *words, "a", *pairs], named, str(root)))
    weights = tmp_path / "weights"
    save_checkpoint(get_model("tiny_imagenet", "ShuffleV2", 2).state_dict(), weights)
    for number, content in enumerate(PICTURES):
        root = tmp_path / f"pictures{number}"
        write(root, {"train": IMAGES, "val": IMAGES | {"b": {"1.png": content}}})
        command = ["eval", "-m", "ShuffleV2", "-d", "tiny_imagenet", "--root", root, "-c", weights]
        wrong.append(wrongly_taken(command, f"cannot read the image {root}/val/b/1.png"))
    report(wrong, "data sets", figure)


LINES = [
    ("train --confg x", "--confg"),
    ("train --cfg", "--cfg"),
    ("train --cfg nowhere.yaml", "nowhere.yaml"),
    ("train --cfg README.md", "README.md"),
    ("train --plugin nowhere.py", "nowhere.py"),
    (f"train --plugin {300 * 'x'}.py", "--plugin"),
    ("train --device gpu", "--device gpu"),
    ("train --resume", "--resume"),
    ("eval -c x", "-m"),
    ("eval -m resnet8 -c nowhere -d digits", "nowhere"),
    ("eval -m resnet8 -c x -d digit", "did you mean 'digits'"),
    ("eval -m resnet8 -c x -d digits -bs many", "DATASET.TEST.BATCH_SIZE"),
    ("eval -m resnet8 -d digits", "-m resnet8 has no published weights"),
    ("memo forget", "forget"),
    ("memo delete", "--all"),
    ("memo verify nowhere", "nowhere"),
    ("report", "RUN_FOLDER"),
    ("report nowhere", "nowhere"),
    ("download", "NAME"),
    ("download cifar1000", "cifar1000"),
    ("demo --seeds 0", "--seeds"),
]


def test_mistakes_in_command_lines(tmp_path, monkeypatch, words, wrongly_taken, figure):
    monkeypatch.chdir(tmp_path)
    commands = [(line.split(), named) for line, named in LINES]
    wrong = [
        wrongly_taken(
            [*command, *words, "a"]
            if command[0] == "train" and command[-1] != "--cfg"
            else command,
            named,
        )
        for command, named in commands
    ]
    report(wrong, "command lines", figure)


# --- R13: typos -----------------------------------------------------------------------------------------------------


def edits(word, letters):
    """All words at a distance of one edit: a deletion, a transposition, a replacement or an insertion."""
    halves = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    changed = {a + b[1:] for a, b in halves} | {
        a + b[1] + b[0] + b[2:] for a, b in halves if len(b) > 1
    }
    return changed.union(
        *({a + letter + b[1:], a + letter + b} for a, b in halves for letter in letters)
    ) - {word}


def typo(word, known, draw):
    """A word with a letter deleted, doubled, swapped with its neighbour or replaced, that means no other known one."""
    while True:
        i = draw.choice([i for i, letter in enumerate(word) if letter.isalpha()])
        letter, rest = word[i], word[i + 1 :]
        other = draw.choice(string.ascii_uppercase if letter.isupper() else string.ascii_lowercase)
        wrong = word[:i] + draw.choice(
            [rest, letter + letter + rest, rest[:1] + letter + rest[1:], other + rest]
        )
        if wrong not in known and edits(wrong, {*"".join(known)}) & {*known} == {word}:
            return wrong


def typos(draw):
    """(KEY and VALUE, what the line suggests), thirty times."""
    keys, models = [key for key, _ in flatten(load_cfg())], model_names("cifar")
    for key in draw.sample(keys, 10):
        *group, name = key.split(".")
        siblings = {
            other.split(".")[len(group)]
            for other in keys
            if other.split(".")[: len(group)] == group
        }
        wrong = typo(name, siblings, draw)
        yield [".".join([*group, wrong]), "1"], key
    for group in draw.sample(sorted({key.split(".")[0] for key in keys}), 4):
        yield [f"{typo(group, {key.split('.')[0] for key in keys}, draw)}.X", "1"], group
    for model in draw.sample(models, 8):
        yield ["DISTILLER.STUDENT", typo(model, models, draw)], model
    for method in distiller_dict:
        yield ["DISTILLER.TYPE", typo(method, distiller_dict, draw)], method


def test_a_typo_is_answered_with_the_word_that_was_meant(tmp_path, tool, figure):
    asked = list(typos(random.Random(13)))
    assert len(asked) == 30
    missed = []
    for pair, meant in asked:
        done = tool("train", "LOG.PREFIX", tmp_path / "o", *pair)
        if done.code != 2 or f"did you mean '{meant}'?" not in done.err:
            missed.append((pair, done.err))
    figure(
        "R13",
        f"{len(asked) - len(missed)} of {len(asked)} typos answered with the word that was meant",
    )
    assert missed == []
