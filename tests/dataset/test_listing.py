"""Which files of a folder are images of which class, and the hashes that identify them."""

import os
import shutil

import pytest
from torchvision.datasets import ImageFolder

from edkd.dataset.listing import in_threads, list_images, portable
from edkd.errors import UserError


@pytest.fixture
def part(folder):
    """A part of an image folder: two classes of six images."""
    return folder / "train"


def names(listing):
    return [os.path.relpath(path, listing.folder) for path, _ in listing.samples]


def test_the_order_is_that_of_torchvision(part):
    for place in ("n01/b/c", "n01/B", "n02/10"):
        (part / place).mkdir(parents=True)
        for name in ("z.PNG", "A.png", "é.png"):
            shutil.copy(part / "n01/0.png", part / place / name)
    listing = list_images(part)
    reference = ImageFolder(part)
    assert listing.classes == reference.classes
    assert listing.samples == reference.samples


@pytest.mark.parametrize(
    "entry",
    [
        *(".ipynb_checkpoints/0.png", ".hidden/0.png", "__MACOSX/0.png", "@eaDir/0.png"),
        *("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "labels.txt", "notes.md"),
    ],
)
@pytest.mark.parametrize("place", [".", "n01"])
def test_hidden_entries_and_notes_are_left_out_silently(part, entry, place, capsys):
    before = list_images(part)
    (part / place / entry).parent.mkdir(exist_ok=True)
    shutil.copy(part / "n01/0.png", part / place / entry)
    assert list_images(part) == before
    assert capsys.readouterr().err == ""


def test_a_hidden_folder_above_the_data_set_does_not_count(part, tmp_path):
    before = names(list_images(part))
    moved = shutil.copytree(part, tmp_path / ".cache" / "train")
    assert names(list_images(moved)) == before


def test_a_folder_with_the_name_of_an_image_is_a_folder(part):
    (part / "n01/x.jpg").mkdir()
    shutil.copy(part / "n01/0.png", part / "n01/x.jpg/0.png")
    assert "n01/x.jpg/0.png" in names(list_images(part))


def test_files_that_are_not_read_are_named(part, capsys):
    for name in ("a.heic", "b.cr2", "c.svg", "no_extension"):
        (part / "n02" / name).write_bytes(b"?")
    os.mkfifo(part / "n02" / "pipe.png")
    assert len(list_images(part).samples) == 12
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "5 files are skipped (" in line
    assert "n02/a.heic, n02/b.cr2, n02/c.svg and 2 more; convert images among them to PNG" in line
    assert "pip install pillow-heif" in line


@pytest.mark.parametrize("target", [".", "..", "../..", "../n01", "deep"])
def test_a_link_to_a_folder_around_it_adds_no_images(part, target):
    (part / "n01/deep").mkdir()
    shutil.copy(part / "n01/0.png", part / "n01/deep/1.png")
    (part / "n01/link").symlink_to(target, target_is_directory=True)
    assert len(list_images(part).samples) == 13


@pytest.mark.parametrize("target", [".", "..", "loop"])
def test_a_class_that_links_to_a_folder_around_it_is_no_class(part, target, capsys):
    (part / "loop").symlink_to(target, target_is_directory=True)
    listing = list_images(part)
    assert (listing.classes, len(listing.samples)) == (["n01", "n02"], 12)
    assert ("links to a folder around it: loop" in capsys.readouterr().err) == (target != "loop")


def test_links_to_other_places_are_followed(part, tmp_path):
    (part / "n02").rename(tmp_path / "elsewhere")
    (part / "n02").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(list_images(part).samples) == 12


def test_a_folder_that_cannot_be_listed_is_named(part, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("n02"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list the folder .*n02 \(Permission denied\)"):
        list_images(part)


def test_a_class_without_images_is_refused(part):
    (part / "n03").mkdir()
    (part / "n03/a.heic").write_bytes(b"?")
    with pytest.raises(UserError, match=r"n03 has no images; 1 file is skipped \(1 with .heic\)"):
        list_images(part)


def test_a_folder_without_classes_is_refused(part):
    shutil.move(part / "n01", part / ".n01")
    shutil.rmtree(part / "n02")
    with pytest.raises(UserError, match="no class folders in .*train; store the images as"):
        list_images(part)


def test_the_hashes_depend_on_names_and_sizes_alone(part, tmp_path):
    before = list_images(part)
    moved = list_images(shutil.copytree(part, tmp_path / "moved"))
    assert (moved.names, moved.sizes) == (before.names, before.sizes)

    (part / "n01/5.png").rename(part / "n01/6.png")
    renamed = list_images(part)
    assert (renamed.names == before.names, renamed.sizes == before.sizes) == (False, True)

    (part / "n02/5.png").write_bytes(b"longer" + (part / "n02/5.png").read_bytes())
    assert list_images(part).sizes != before.sizes
    assert portable(["e\u0301"]) == portable(["\u00e9"])  # as macOS and Linux store it


def test_names_that_are_not_text(part):
    path = os.fsencode(part / "n01") + b"/\xff.png"
    shutil.copy(part / "n01/0.png", path)
    assert len(list_images(part).samples) == 13


def test_one_thread_does_where_no_other_can_start(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    assert in_threads(abs, [-1, 2]) == [1, 2]
