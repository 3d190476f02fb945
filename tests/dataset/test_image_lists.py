"""DATASET.LIST: images and labels in CSV and parquet files."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from edkd.dataset import get_dataset
from edkd.engine.config.load import load_config
from edkd.errors import UserError

CPU = torch.device("cpu")
LABELS = ["cat", "dog", "cat", "eel", "dog", "eel", "cat", "dog", "eel", "cat"]
SPLITS = ["train"] * 6 + ["val", "val"] + ["test", "test"]
PATHS = [f"photos/{number}.png" for number in range(10)]
ROWS = list(zip(PATHS, LABELS, SPLITS, strict=True))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with photos/0.png ... photos/9.png; the pixels of each have its number."""
    root = tmp_path_factory.mktemp("lists")
    (root / "photos").mkdir()
    for number in range(10):
        pixels = np.full((8, 8, 3), number, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{number}.png")
    return root


def load(file, *opts):
    words = ["DATASET.TYPE", "folder", "DATASET.LIST", str(file), "DATASET.NUM_WORKERS", "0"]
    words += ["DISTILLER.STUDENT", "ResNet18", "DISTILLER.TYPE", "NONE", *map(str, opts)]
    return get_dataset(load_config(opts=words), CPU)


def write_csv(home, rows=ROWS, header="path,label,split", encoding="utf-8", delimiter=","):
    file = home / "list.csv"
    lines = [header.replace(",", delimiter), *(delimiter.join(map(str, row)) for row in rows)]
    file.write_bytes("\r\n".join(lines).encode(encoding))
    return file


def numbers(loader):
    """Which images a loader has, and their classes."""
    images = loader.images
    members = loader.members.tolist()
    return {int(images.image[m, 0, 0, 0]): int(images.target[m]) for m in members}


def test_the_column_split_makes_the_parts(home):
    data = load(write_csv(home))
    assert numbers(data.train) == {0: 0, 1: 1, 2: 0, 3: 2, 4: 1, 5: 2}
    assert numbers(data.val) == {6: 0, 7: 1}
    assert numbers(data.test) == {8: 2, 9: 0}
    assert data.info.class_names == ("cat", "dog", "eel")
    data.check(False)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_forms_of_csv(home, encoding, delimiter):
    rows = [(split.title(), "note", label, f'"{path}"') for path, label, split in ROWS]
    header = "Split,comment, LABEL,Path"
    data = load(write_csv(home, rows, header, encoding, delimiter))
    assert numbers(data.train) == {0: 0, 1: 1, 2: 0, 3: 2, 4: 1, 5: 2}
    assert numbers(data.test) == {8: 2, 9: 0}


@pytest.mark.parametrize("kind", ["text", "dictionary", "integer"])
def test_parquet_gives_the_same_data(home, kind):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    label = pyarrow.array(LABELS)
    if kind == "dictionary":
        label = label.dictionary_encode()
    elif kind == "integer":
        label = pyarrow.array([["cat", "dog", "eel"].index(name) for name in LABELS])
    columns = {"label": label, "path": [row[0] for row in ROWS], "split": SPLITS}
    file = home / "list.parquet"
    parquet.write_table(pyarrow.table({**columns, "score": [0.5] * 10}), file)

    ours, theirs = load(file), load(write_csv(home))
    for part in ("train", "val", "test"):
        assert numbers(getattr(ours, part)) == numbers(getattr(theirs, part))
    if kind != "integer":
        assert ours.info.identity == theirs.info.identity


def test_integers_are_ordered_as_numbers(home):
    labels = {"cat": 10, "dog": 9, "eel": 100}
    data = load(write_csv(home, [(path, labels[label], split) for path, label, split in ROWS]))
    assert data.info.class_names == ("9", "10", "100")
    assert data.info.targets.tolist() == [1, 0, 1, 2, 0, 2]


def test_without_a_column_split_a_test_set_is_taken(home):
    file = write_csv(home, [row[:2] for row in ROWS], "path,label")
    data = load(file, "DATASET.TEST_SPLIT", 0.4)
    assert Counter(numbers(data.test).values()) == {0: 2, 1: 1, 2: 1}
    assert numbers(data.train).keys() | numbers(data.test).keys() == set(range(10))

    other = load(file, "DATASET.TEST_SPLIT", 0.4, "DATASET.SPLIT_SEED", 3)
    assert numbers(other.test) != numbers(data.test)
    assert other.info.identity != data.info.identity


def test_paths_are_relative_to_the_root(home, tmp_path):
    file = write_csv(home, [(row[0].removeprefix("photos/"), *row[1:]) for row in ROWS])
    moved = file.rename(tmp_path / "moved.csv")
    with pytest.raises(UserError, match=r"line 2: no file 0.png in .*, and 9 more are missing; "):
        load(moved)
    assert load(moved, "DATASET.ROOT", home / "photos").train.num_images == 6

    absolute = [(home / row[0], *row[1:]) for row in ROWS]
    assert load(write_csv(home, absolute).rename(tmp_path / "a.csv")).train.num_images == 6


def test_the_identity_tells_changes(home):
    before = load(write_csv(home)).info.identity
    assert load(write_csv(home, delimiter=";")).info.identity == before

    swapped = [(path, {"cat": "dog", "dog": "cat"}.get(label, label), s) for path, label, s in ROWS]
    assert load(write_csv(home, swapped)).info.identity != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: ("photos/3.png", "", "train")}, r"list.csv, line 5: the label is empty; fill"),
        ({0: ("", "cat", "train")}, r"line 2: the path is empty"),
        ({4: ("photos/44.png", "dog", "train")}, r"line 6: no file photos/44.png in .*; correct"),
        ({9: ("photos/9.png", "cat", "holdout")}, r"line 11: the split is 'holdout', not train"),
        ({9: ("photos/9.png", "cat", "")}, r"line 11: the split is ''"),
        ({9: ("photos/9.png", "cow", "test")}, r"line 11: the label 'cow' is not among those of"),
        ({9: ("photos/./0.png", "cat", "test")}, r"line 11: photos/./0.png is in line 2, too"),
        ({9: ("photos/9.png",)}, r"line 11: the label is empty"),
        ({9: ("photos/9.png", "cat", "test", "x")}, r"line 11: it has 4 values for 3 columns; put"),
    ],
)
def test_a_bad_row_is_named(home, change, message):
    rows = [change.get(number, row) for number, row in enumerate(ROWS)]
    with pytest.raises(UserError, match=message) as caught:
        load(write_csv(home, rows))
    assert "\n" not in str(caught.value)


def test_a_relative_and_an_absolute_path_of_one_image(home):
    rows = [*ROWS[:9], (home / "photos/0.png", "cat", "test")]
    with pytest.raises(UserError, match=r"line 11: .*/photos/0.png is in line 2, too; keep one"):
        load(write_csv(home, rows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has no column path .columns: none.; it needs"),
        (b"file,label\na.png,cat\n", r"has no column path \(columns: file, label\); it needs the"),
        (b"path,label\n", r"has no rows"),
        (b"path,label\nphotos/0.png,caf\xe9\n", r"it is not UTF-8 text; save it as CSV UTF-8"),
        (b"path,label,split\nphotos/0.png,cat,test\n", r"it has no row with the split train"),
    ],
)
def test_another_form_is_refused(home, content, message):
    file = home / "other.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_no_file(home):
    with pytest.raises(
        UserError, match=r"DATASET.LIST: .*away.csv: there is no such file; it needs the columns"
    ):
        load(home / "away.csv")
    (home / "no.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"no.parquet: it is no parquet file"):
        load(home / "no.parquet")


def test_parquet_without_pyarrow(home, monkeypatch):
    (home / "any.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"the package pyarrow: pip install 'edkd\[tables\]'"):
        load(home / "any.parquet")
