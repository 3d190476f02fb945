"""R7 and R13: mistakes are one line that names them, exit code 2, and nothing is written."""

import pickle
import random
import string

import pytest
import torch

from edkd.distillers import method_names
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.config.table import table
from edkd.models import get_model, model_names
from tests.reliability.files import FOREIGN, model, picture, saved, weights, write
from tests.runs import tree


@pytest.fixture
def complaint(tool, tmp_path, recwarn):
    """complaint(words, *named): "" where a command is refused as it should be.

    That is: by one line that has all of `named`, with exit code 2, and nothing is written.
    """

    def run(words, *named):
        before = tree(tmp_path), sorted(tmp_path.rglob("*"))
        recwarn.clear()
        try:
            done = tool(*words)
        except Exception as error:  # the user would see a traceback
            return f"{words}: traceback of {error!r}"

        warnings = [str(each.message) for each in recwarn if each.category is UserWarning]
        lines = done.err.splitlines() + warnings
        if done.code != 2 or len(lines) != 1 or not lines[0].startswith("edkd: error: "):
            return f"{words}: {done.code}, {lines}"
        lacking = [word for word in named if word not in lines[0]]
        if lacking:
            return f"{words}: {lines} lacks {lacking}"
        if (tree(tmp_path), sorted(tmp_path.rglob("*"))) != before:
            return f"{words}: something was written"
        return ""

    return run


@pytest.fixture
def verdict(figure):
    """verdict("runs", complaints): adds a figure, and fails where there are complaints."""

    def conclude(what, complaints):
        wrong = [line for line in complaints if line]
        total = len(complaints)
        figure("R7", f"{total - len(wrong)} of {total} malformed {what} refused in one line")
        assert wrong == []

    return conclude


# Configurations.

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
NOBODY = "~nobody-has-this-name/data"
NO_WEIGHTS = ["DISTILLER.TEACHER", "resnet20", "DISTILLER.TEACHER_CKPT", ""]
PAIRS = [
    (["SOLVER.LR"], "the key 'SOLVER.LR' has no value"),
    (["SOLVER.LRR=0.1", "SOLVER.EPOCHS=3"], "did you mean 'SOLVER.LR'"),
    (["", "1"], "has no key"),
    (["SOLVER..LR", "1"], "unknown key SOLVER."),
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
    (["DISTILLER.TYPE", "KD", *NO_WEIGHTS], "DISTILLER.TEACHER"),
    (["EXPERIMENT.NAME", 300 * "x"], "EXPERIMENT.NAME"),
    (["EXPERIMENT.PROJECT", 300 * "x"], "EXPERIMENT.PROJECT"),
    (["EXPERIMENT.NAME", "a\0b"], "EXPERIMENT.NAME"),
    (["DATASET.TYPE", "cifar10", "DATASET.ROOT", NOBODY], f"DATASET.ROOT is '{NOBODY}'"),
    (["LOG.PREFIX", 5000 * "x"], "LOG.PREFIX"),
    (["TEACHER_MEMO.FOLDER", "a\0b"], "TEACHER_MEMO.FOLDER"),
]


def test_mistakes_in_configurations(tmp_path, digits, complaint, verdict):
    complaints = []
    for number, (content, named) in enumerate(FILES):
        file = tmp_path / str(number) / "x.yaml"
        write(file, content)
        complaints.append(complaint(["train", "--cfg", file, *digits, "a"], named))
    for pairs, named in PAIRS:
        complaints.append(complaint(["train", *digits, "a", *pairs], named))
    verdict("configurations", complaints)


# Checkpoints.

EVALUATED = [  # the name of a file of FOREIGN, and what the line names beside its path
    ("nothing", "is damaged"),
    ("a page of a server", "is a web page"),
    ("a pointer of Git LFS", "git lfs pull"),
    ("a picture", "is a picture"),
    ("a folder", "is not the folder of a run"),
    ("a pickled dictionary", "is a pickle that torch.save did not write"),
    ("the older format, cut short", "is damaged"),
    ("another architecture", "another architecture"),
    ("another number of classes", "fc.weight is (100, 64) there but (10, 64) here"),
    ("floats of 8 bits", "conv1.weight"),
]


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


TEACHERS = [  # what is done to the teacher's weights, and what the line names beside the path
    (lambda state: model(state)[:-1], "is damaged"),
    (lambda state: model(state)[100:], "is damaged"),
    (lambda state: model(state).replace(b"conv1", b"conv9"), "is damaged"),
    (lambda state: saved({"epoch": 3}), "holds no weights"),
    (lambda state: saved([state]), "holds list"),
    (lambda state: model(state | {"fc.bias": torch.ones(11)}), "fc.bias is (11,) there"),
    (lambda state: model(without(state, "fc.bias")), "lacks fc.bias"),
    (lambda state: model(state | {"extra.weight": torch.ones(1)}), "has extra.weight"),
    (lambda state: model({f"{key}x": state[key] for key in state}), "it lacks bn1.bias"),
    (FOREIGN["sparse tensors"], "conv1.weight"),
]


def with_identity(state, **changes):
    return saved(state | {"identity": state["identity"] | changes})


LATEST = [  # what is done to `latest` and the one before it, and what the line names
    (lambda state: b"", "latest.previous is damaged"),
    (lambda state: saved(state)[:5000], "latest.previous is damaged"),
    (lambda state: saved({"model": state["model"]}), "'latest' in"),
    (lambda state: saved(without(state, "history")), "'latest' in"),
    (lambda state: saved(without(state, "optimizer")), "'latest' in"),
    (lambda state: saved(state | {"history": 3}), "'latest' in"),
    (lambda state: saved(state | {"history": 4 * state["history"]}), "but 4 epochs are done"),
    (lambda state: saved(state | {"model": weights("resnet14")}), "'latest' in"),
    (lambda state: with_identity(state, precision="float16"), "precision float16"),
    (lambda state: with_identity(state, **{"number of training images": 7}), "images 7"),
    (lambda state: saved(state | {"progress": {"step": 3}}), "'latest' in"),
]


def test_mistakes_in_weights(tmp_path, digits, complaint, verdict):
    complaints = []
    evaluate = ["eval", "-m", "resnet8", "-d", "digits", "-c"]
    student = weights("resnet8")
    for number, (name, named) in enumerate(EVALUATED):
        file = tmp_path / f"{number}.pth"
        write(file, FOREIGN[name](student))
        complaints.append(complaint([*evaluate, file], named, file.name))
    complaints.append(complaint([*evaluate, 300 * "x"], "-c: no weights"))

    teacher = weights("resnet14")
    for change, named in TEACHERS:
        write(tmp_path / "teacher.pth", change(teacher))
        pairs = ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", tmp_path / "teacher.pth"]
        words = ["train", *digits, "taught", *pairs]
        complaints.append(complaint(words, named, "teacher.pth"))
    verdict("files of weights", complaints)


def test_mistakes_in_checkpoints(tmp_path, tool, tiny, complaint, verdict):
    complaints = []
    words = [*tiny, "a", "SOLVER.LR_DECAY_STAGES", "[]"]
    assert tool("train", *words, "SOLVER.EPOCHS", "1").code == 0
    run = tmp_path / "distill" / "a"
    state = load_checkpoint(run / "latest")
    resume = ["train", "--resume", *words]

    for change, named in LATEST:
        for name in ("latest", "latest.previous"):
            write(run / name, change(state))
        complaints.append(complaint(resume, named))
    for name in ("latest", "latest.previous"):
        (run / name).unlink()
    complaints.append(complaint(resume, "latest is missing"))

    for content in ("[", "SOLVER: 3\n", b"\xff\xfe"):
        write(run / "config.yaml", content)
        complaints.append(complaint(resume, "--resume", str(run)))
    verdict("checkpoints", complaints)


# Runs.

FINISHED = {
    "result.json": '{"last_test_top1": 1, "best_test_top1": 1, "parameters": 3}',
    "config.yaml": "LOG: {}\n",
    "metrics.jsonl": '{"epoch": 1, "test_top1": 1.0}\n',
}
RUNS = [  # files of a finished run instead of the above
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


def test_mistakes_in_runs_to_report(tmp_path, tool, complaint, verdict):
    run = tmp_path / "run"
    write(run, FINISHED)
    assert tool("report", run, "--picture", tmp_path / "curves.png").code == 0
    complaints = []
    for content in RUNS:
        write(run, FINISHED | content)
        complaints.append(complaint(["report", run, "--picture", tmp_path / "x.png"], str(run)))
    verdict("runs", complaints)


# Data sets.

IMAGES = {"a": {"1.png": picture()}, "b": {"1.png": picture()}}
BATCHES = "cifar-10-batches-py"
SETS = [  # DATASET.TYPE, the content of DATASET.ROOT (`write`), and what the line names
    ("cifar10", "a file", BATCHES),
    ("cifar10", {}, BATCHES),
    ("cifar10", {"cifar-10-python.tar.gz": b"\x1f\x8b"}, "tools/download.py cifar10"),
    ("cifar10", {BATCHES: "a file"}, "no data set at"),
    ("cifar10", {BATCHES: {}}, f"{BATCHES} is damaged"),
    ("cifar10", {BATCHES: {"data_batch_1": pickle.dumps({"data": []})}}, f"{BATCHES} is damaged"),
    ("cifar10", {BATCHES: {"data_batch_1": {}}}, f"{BATCHES} is damaged"),
    ("cifar100", {BATCHES: {}}, "no data set at"),
    ("cifar100", {"cifar-100-python": dict.fromkeys(("train", "test", "meta"), b"")}, "is damaged"),
    ("imagenet", "a file", "no folder"),
    ("imagenet", {"val": IMAGES}, "/train"),
    ("imagenet", {"train": IMAGES}, "/val"),
    ("imagenet", {"train": IMAGES, "val": "a file"}, "/val"),
    ("imagenet", {"train": {"a": {}}, "val": IMAGES}, "/train"),
    ("imagenet", {"train": {}, "val": IMAGES}, "/train"),
    ("imagenet", {"train": IMAGES["a"], "val": IMAGES}, "/train"),
    ("imagenet", {"train": {"a": {"1.txt": "a picture"}}, "val": IMAGES}, "/train"),
    ("imagenet", {"train": IMAGES, "val": {"a": IMAGES["a"]}}, "only train has 'b'"),
    ("imagenet", {"train": IMAGES, "val": {"a": IMAGES["a"], "B": IMAGES["b"]}}, "has 'B'"),
]
TOO_WIDE = picture()[:16] + b"\x7f\xff\xff\xff" + picture()[20:]
PICTURES = [b"", b"a picture", picture()[:60], TOO_WIDE]
"""Bytes of a file that is no image."""


def test_mistakes_in_data_sets(tmp_path, digits, complaint, verdict):
    complaints = []
    for number, (kind, content, named) in enumerate(SETS):
        root = tmp_path / str(number)
        write(root, content)
        student = "ResNet18" if kind == "imagenet" else "resnet8"
        pairs = ["DATASET.TYPE", kind, "DATASET.ROOT", root, "DISTILLER.STUDENT", student]
        complaints.append(complaint(["train", *digits, "a", *pairs], named, str(root)))

    student = tmp_path / "weights"
    save_checkpoint(get_model("tiny_imagenet", "ShuffleV2", 2).state_dict(), student)
    for number, content in enumerate(PICTURES):
        root = tmp_path / f"pictures{number}"
        write(root, {"train": IMAGES, "val": IMAGES | {"b": {"1.png": content}}})
        words = ["eval", "-m", "ShuffleV2", "-d", "tiny_imagenet", "--root", root, "-c", student]
        complaints.append(complaint(words, f"images: {root}/val/b/1.png ("))
    verdict("data sets", complaints)


# Command lines.

LINES = [
    ("train --confg x", "--confg"),
    ("train --cfg", "--cfg"),
    ("train --cfg nowhere.yaml", "nowhere.yaml"),
    ("train --cfg README.md", "README.md"),
    ("train --plugin nowhere.py", "nowhere.py"),
    (f"train --plugin {300 * 'x'}.py", "--plugin"),
    ("train --device gpu", "--device gpu"),
    ("train --resume", "--resume"),
    ("eval", "-m"),
    ("eval -c x", "no file of weights and no folder of a run at x"),
    ("eval x/y", "no file of weights and no folder of a run at x/y"),
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


def test_mistakes_in_command_lines(tmp_path, monkeypatch, digits, complaint, verdict):
    monkeypatch.chdir(tmp_path)
    complaints = []
    for line, named in LINES:
        words = line.split()
        if words[0] == "train" and words[-1] != "--cfg":
            words += [*digits, "a"]
        complaints.append(complaint(words, named))
    verdict("command lines", complaints)


# Typing errors.


def edits(word, letters):
    """All words at a distance of one edit."""
    halves = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    shorter = {a + b[1:] for a, b in halves}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in halves if len(b) > 1}
    replaced = {a + letter + b[1:] for a, b in halves for letter in letters}
    longer = {a + letter + b for a, b in halves for letter in letters}
    return (shorter | swapped | replaced | longer) - {word}


def typo(word, known, draw):
    """A word with one typing error, which is no closer to any other known word.

    A letter is deleted, doubled, swapped with its neighbour, or replaced.
    """
    while True:
        i = draw.choice([i for i, letter in enumerate(word) if letter.isalpha()])
        letter = word[i]
        rest = word[i + 1 :]
        letters = string.ascii_uppercase if letter.isupper() else string.ascii_lowercase
        other = draw.choice(letters) + rest
        wrong = word[:i] + draw.choice(
            [rest, 2 * letter + rest, rest[:1] + letter + rest[1:], other]
        )
        if wrong not in known and edits(wrong, {*"".join(known)}) & {*known} == {word}:
            return wrong


def typos(draw):
    """(KEY and VALUE, the word that was meant), at least thirty times."""
    keys = list(table())
    models = model_names("cifar")
    groups = {key.split(".")[0] for key in keys}
    for key in draw.sample(keys, 10):
        group, _, name = key.rpartition(".")
        beside = {other.removeprefix(f"{group}.").split(".")[0] for other in within(keys, group)}
        yield [f"{group}.{typo(name, beside, draw)}", "1"], key
    for group in draw.sample(sorted(groups), 4):
        yield [f"{typo(group, groups, draw)}.X", "1"], group
    for name in draw.sample(models, 8):
        yield ["DISTILLER.STUDENT", typo(name, models, draw)], name
    for method in method_names():
        yield ["DISTILLER.TYPE", typo(method, method_names(), draw)], method


def within(keys, group):
    return [key for key in keys if key.startswith(f"{group}.")]


def test_the_intended_word_is_suggested(tmp_path, tool, figure):
    tried = list(typos(random.Random(13)))
    assert len(tried) >= 30
    missed = []
    for pair, meant in tried:
        done = tool("train", "LOG.PREFIX", tmp_path / "o", *pair)
        if done.code != 2 or f"did you mean '{meant}'?" not in done.err:
            missed.append((pair, done.err))
    hits = len(tried) - len(missed)
    figure("R13", f"{hits} of {len(tried)} typing errors answered with the intended word")
    assert missed == []
