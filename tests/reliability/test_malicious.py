"""R6: files that try to run code or to write elsewhere do neither."""

import argparse
import io
import itertools
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from contextlib import suppress

import numpy as np
import pytest
import torch
import yaml

from edkd.archive import unpack
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.memo.admin import delete_memo, survey
from edkd.engine.memo.files import segment_files
from edkd.engine.memo.store import Store
from edkd.errors import UserError
from tests.reliability.files import older, saved, write, zipped
from tests.runs import tree

THESIS = {"thesis.tex": "mine"}

# Checkpoints.


class Malicious:
    """Unpickled by a loader that runs code, it makes a call."""

    def __init__(self, call, *args):
        self.call = call
        self.args = args

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


def load_unsafely(path, kind):
    """As a loader does that runs code."""
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_checkpoint_runs_nothing(tmp_path, figure):
    mark = tmp_path / "executed"
    path = tmp_path / "c"
    cases = list(itertools.product(CALLS, HIDDEN, FORMATS))
    executed = []
    for call, hidden, kind in cases:
        path.write_bytes(FORMATS[kind](HIDDEN[hidden](CALLS[call](mark))))
        with pytest.raises(
            UserError, match="is not a checkpoint of tensors|is a pickle that torch.save did not"
        ):
            load_checkpoint(path)
        if mark.exists():
            executed.append((call, hidden, kind))

        load_unsafely(path, kind)
        assert mark.exists(), "a loader that runs code would be attacked by this"
        mark.unlink()
    figure("R6", f"{len(executed)} of {len(cases)} malicious checkpoints executed")
    assert executed == []


# Configurations.

TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/object/apply:subprocess.call [[touch, {mark}]]",
    "!!python/object/apply:builtins.eval [\"open('{mark}', 'w')\"]",
    "!!python/object/apply:builtins.open ['{mark}', w]",
    "!!python/object/new:tuple "
    "[!!python/object/new:map [!!python/name:eval , [\"open('{mark}', 'w')\"]]]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!!python/tuple [1, 2]",
]


def test_a_malicious_configuration_runs_nothing(tmp_path, tool, digits, figure):
    """As --cfg, as a value of the command line, and saved in a run, for --resume and report."""
    executed = []
    tried = 0
    mark = tmp_path / "executed"
    file = tmp_path / "x.yaml"
    run = tmp_path / "distill" / "a"
    write(run, {"result.json": "{}", "metrics.jsonl": "{}\n"})

    tags = [tag.format(mark=mark) for tag in TAGS]
    for text in [*tags, *(f"SOLVER:\n  LR: {tag}\n" for tag in tags)]:
        file.write_text(text)
        (run / "config.yaml").write_text(text)
        before = tree(tmp_path)
        for command in (
            ["train", "--cfg", file, *digits, "b"],
            ["train", *digits, "b", "SOLVER.LR", text],
            ["train", "--resume", *digits, "a"],
            ["report", run],
        ):
            tried += 1
            assert tool(*command).code == 2
            if tree(tmp_path) != before:
                executed.append(command)

    for name in ("x.py", "script.yaml"):
        (tmp_path / name).write_text(f"open({str(mark)!r}, 'w')")
        tried += 1
        assert tool("train", "--cfg", tmp_path / name, *digits, "b").code == 2

    figure("R6", f"{len(executed) + mark.exists()} of {tried} malicious configurations executed")
    assert executed == []
    assert not mark.exists()
    yaml.unsafe_load(TAGS[0].format(mark=mark))
    assert mark.exists(), "a loader that runs code would be attacked by this"


def test_the_name_of_a_run_leads_nowhere_else(tmp_path, tool, figure):
    outside = tmp_path / "outside"
    prefix = tmp_path / "o"
    write(outside, THESIS)
    (prefix / "distill").mkdir(parents=True)
    (prefix / "distill" / "link").symlink_to(outside)
    (prefix / "project").symlink_to(outside)

    names = {
        "NAME": ["../../x", "..", ".", str(outside), "a/../../../outside", "link", "link/x"],
        "TAG": ["../../outside/x", str(outside / "x")],
        "PROJECT": ["..", "../outside", str(outside), "project", "distill/../.."],
    }
    pairs = [(key, name) for key, each in names.items() for name in each]
    before = tree(tmp_path)
    accepted = []
    for key, name in pairs:
        refusal = tool("train", "LOG.PREFIX", prefix, f"EXPERIMENT.{key}", name)
        if refusal.code != 2 or "not inside LOG.PREFIX" not in refusal.err:
            accepted.append((key, name, refusal))
    figure("R6", f"{len(accepted)} of {len(pairs)} names of runs led outside")
    assert accepted == []
    assert tree(tmp_path) == before


# Archives.


def member(name, kind=tarfile.REGTYPE, link="", **more):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
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


def write_archive(archive, members, outside):
    """A tar of these members; for None, a zip with a member above."""
    if members is None:
        archive.write_bytes(zipped(**{"../evil": "evil"}))
        return
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for info in members:
            names = {
                key: getattr(info, key).format(outside=outside) for key in ("name", "linkname")
            }
            tar.addfile(info.replace(**names), io.BytesIO(b"evil"))


def test_an_archive_unpacks_nowhere_else(tmp_path, figure):
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    write(outside, THESIS)
    before = tree(outside)

    escaped = []
    for name, members in ARCHIVES.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        archive = folder / "a.tar"
        write_archive(archive, members, outside)
        with suppress(UserError):  # an absolute name may become one inside
            unpack(archive, folder, {})

        inside = list(folder.rglob("*"))
        are_plain = all((path.is_dir() or path.is_file()) for path in inside)
        has_links = any(path.is_symlink() for path in inside)
        is_clean = sorted(tmp_path.iterdir()) == [folder, outside] and tree(outside) == before
        if has_links or not are_plain or not is_clean:
            escaped.append(name)
    figure("R6", f"{len(escaped)} of {len(ARCHIVES)} malicious archives wrote outside")
    assert escaped == []


# Caches and runs.


def test_a_malicious_cache_or_run_touches_nothing_else(tmp_path, tool, figure):
    """A segment that is a link elsewhere; code in the place of JSON."""
    mark = tmp_path / "executed"
    outside = tmp_path / "outside"
    thesis = {"thesis.tex": 64 * "x"}
    write(outside, thesis)
    before = tree(outside)
    code = f"__import__('os').system('touch {mark}')"

    # Links among the segments.
    about = {"num_keys": 9, "row_bytes": 4}
    folder = tmp_path / "memos" / "memo_0123456789abcdef"
    store = Store(folder.parent, folder.name, about, 1e9, print)
    store.add(np.array([1]), np.ones((1, 4), np.uint8))
    (folder / ("0" * 32)).symlink_to(outside / "thesis.tex")
    (folder / ("1" * 32)).symlink_to(outside)
    Store(folder.parent, folder.name, about, 1e9, lambda line: None).read(np.arange(9))
    assert len(segment_files(folder)) == 1

    # Code in about.json.
    (folder / ("0" * 32)).symlink_to(outside / "thesis.tex")
    entries = {"row_bytes": code, "num_keys": 9, "teacher": code, "dataset": "x", "dtype": "y"}
    for content in (code, json.dumps(entries)):
        (folder / "about.json").write_text(content)
        with pytest.raises(UserError, match=r"about.json is damaged; delete the folder"):
            survey(folder, verify=True)
    (folder / ("1" * 32)).unlink()
    delete_memo(folder)

    # Code in the files of a run.
    run = tmp_path / "run"
    files = {"result.json": '{"last_test_top1": 1}', "metrics.jsonl": '{"test_top1": 1}'}
    for name in files:
        write(run, files | {"config.yaml": "{}", name: code})
        assert "holds no finished run" in tool("report", run).err

    figure("R6", f"{int(mark.exists())} of 6 malicious caches and runs executed")
    assert not mark.exists()
    assert tree(outside) == before
