"""Published data sets in their raw formats: downloaded from a server here, checked, and read.

The files are small ones of the same formats, and the published sums are replaced by theirs.
"""

import gzip
import hashlib
import io
import pickle
import shutil
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from edkd import catalogue
from edkd.archive import unpack
from edkd.catalogue import sort_tiny_imagenet
from edkd.dataset import get_dataset
from edkd.dataset._torchvision import read_cifar
from edkd.download import Options, fetch
from edkd.errors import UserError
from edkd.registry import DATASETS
from tests.runs import CHECKOUT, assert_refused, records

CPU = torch.device("cpu")
TRAIN = 40
TEST = 20


def md5(content):
    return hashlib.md5(content).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server of the files in a folder: its URL with a slash, and that folder."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "web"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        serve = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serve.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()
        serve.join()


def download(name, root):
    lines = []
    fetch(name, root, lines.append, options=Options(retries=0))
    return lines


# The raw formats.


def digits_28():
    """The digits of scikit-learn at 28x28, as MNIST has them: (N,28,28) and (N,)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    large = np.kron(pixels.reshape(-1, 8, 8) * (255 / 16), np.ones((3, 3)))
    return np.pad(large, ((0, 0), (2, 2), (2, 2))).astype(np.uint8), labels.astype(np.uint8)


def idx(array):
    """A uint8 array in the format of MNIST."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def serve_mnist(web, monkeypatch, reader="MNIST", table=catalogue.MNIST_FILES, count=TRAIN):
    url, folder = web
    image, label = digits_28()
    parts = {"train": slice(count), "t10k": slice(count, count + TEST)}
    resources = []
    for part, which in parts.items():
        for kind, array in (("images-idx3", image), ("labels-idx1", label)):
            name = f"{part}-{kind}-ubyte"
            raw = idx(array[which])
            packed = gzip.compress(raw)
            (folder / f"{name}.gz").write_bytes(packed)
            resources.append((f"{name}.gz", md5(packed)))
            monkeypatch.setitem(table, name, md5(raw))

    monkeypatch.setattr(getattr(torchvision.datasets, reader), "resources", resources)
    monkeypatch.setattr(getattr(torchvision.datasets, reader), "mirrors", [url])
    return image, label


def serve_svhn(web, monkeypatch):
    from scipy.io import savemat

    url, folder = web
    generator = np.random.default_rng(0)
    parts = {}
    contents = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        name = f"{part}_32x32.mat"
        image = generator.integers(256, size=(32, 32, 3, count), dtype=np.uint8)
        label = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]  # 10 is the digit 0
        savemat(folder / name, {"X": image, "y": label})
        parts[part] = [f"{url}{name}", name, md5((folder / name).read_bytes())]
        contents[part] = image, label
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", parts)
    return contents


def serve_stl10(web, monkeypatch):
    url, folder = web
    generator = np.random.default_rng(0)
    stl10 = torchvision.datasets.STL10
    files = {"unlabeled_X.bin": b"two gigabytes", "class_names.txt": b"airplane\n"}
    for part, count in (("train", TRAIN), ("test", TEST)):
        image = generator.integers(256, size=(count, 3, 96, 96), dtype=np.uint8)
        files[f"{part}_X.bin"] = image.tobytes()
        files[f"{part}_y.bin"] = (np.arange(count) % 10 + 1).astype(np.uint8).tobytes()

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"stl10_binary/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (folder / "stl10_binary.tar.gz").write_bytes(buffer.getvalue())

    def sums(names):
        return [[name, md5(files[name])] for name in names]

    monkeypatch.setattr(stl10, "url", f"{url}stl10_binary.tar.gz")
    monkeypatch.setattr(stl10, "tgz_md5", md5(buffer.getvalue()))
    lists = {
        "train_list": ["train_X.bin", "train_y.bin", "unlabeled_X.bin"],
        "test_list": ["test_X.bin", "test_y.bin"],
    }
    for attribute, names in lists.items():
        monkeypatch.setattr(stl10, attribute, sums(names))
    return files


# Downloaded and read.


@pytest.mark.parametrize(
    ("name", "reader", "table", "num_views"),
    [
        ("mnist", "MNIST", catalogue.MNIST_FILES, 81),
        ("fashion_mnist", "FashionMNIST", catalogue.FASHION_MNIST_FILES, 162),
    ],
)
def test_mnist(web, config, monkeypatch, tmp_path, name, reader, table, num_views):
    image, label = serve_mnist(web, monkeypatch, reader, table)
    download(name, tmp_path)
    raw = tmp_path / "data" / reader / "raw"
    assert {path.name for path in raw.iterdir()} == set(table)

    data = get_dataset(config(DATASET__TYPE=name, DATASET__ROOT=str(tmp_path / "data")), CPU)
    assert (data.train.num_images, data.test.num_images, data.num_classes) == (TRAIN, TEST, 10)
    assert data.train.augmentations["weak"].num_views == num_views
    assert data.info.targets.tolist() == label[:TRAIN].tolist()

    assert data.info.image_shape == DATASETS.find(name).info["image_shape"]
    pixels = data.test.images.image
    assert pixels.shape == (TEST, 3, 32, 32)
    for channel in range(3):
        inner = pixels[:, channel, 2:30, 2:30].numpy()
        assert np.array_equal(inner, image[TRAIN : TRAIN + TEST])
    pixels[:, :, 2:30, 2:30] = 0
    assert not pixels.any()


def test_svhn(web, config, monkeypatch, tmp_path):
    contents = serve_svhn(web, monkeypatch)
    download("svhn", tmp_path)
    data = get_dataset(config(DATASET__TYPE="svhn", DATASET__ROOT=str(tmp_path / "data")), CPU)

    image, label = contents["train"]
    assert data.info.targets.tolist() == (label[:, 0] % 10).tolist()
    assert np.array_equal(data.train.images.image[7].numpy(), image[..., 7].transpose(2, 0, 1))
    assert data.train.augmentations["weak"].num_views == 81
    assert data.info.class_names == tuple("0123456789")


def test_stl10_without_the_images_that_have_no_labels(web, config, monkeypatch, tmp_path):
    files = serve_stl10(web, monkeypatch)
    download("stl10", tmp_path)
    folder = tmp_path / "data" / "stl10_binary"
    (folder / "unlabeled_X.bin").unlink()

    cfg = config(DATASET__TYPE="stl10", DATASET__ROOT=str(tmp_path / "data"))
    data = get_dataset(cfg, CPU)
    assert (data.train.num_images, data.test.num_images) == (TRAIN, TEST)
    assert data.info.image_shape == DATASETS.find("stl10").info["image_shape"] == (3, 96, 96)
    assert data.info.targets.tolist() == [number % 10 for number in range(TRAIN)]
    columns = np.frombuffer(files["train_X.bin"], np.uint8).reshape(-1, 3, 96, 96)
    assert np.array_equal(data.train.images.image.numpy(), columns.transpose(0, 1, 3, 2))
    assert "already in place" in download("stl10", tmp_path)[0]


def test_the_command_trains_on_mnist(web, tool, monkeypatch, tmp_path):
    serve_mnist(web, monkeypatch, count=320)
    download("mnist", tmp_path)
    words = ["--cfg", CHECKOUT / "configs/mnist/vanilla/resnet8.yaml", "LOG.PREFIX", tmp_path]
    words += ["DATASET.ROOT", tmp_path / "data", "LOG.WANDB", "False", "SOLVER.EPOCHS", 1]
    done = tool("train", *words, "SOLVER.BATCH_SIZE", 32, "EXPERIMENT.NAME", "run")
    assert (done.code, done.err) == (0, "")
    run = tmp_path / "mnist" / "run"
    (record,) = records(run)
    done = tool("eval", run, "--root", tmp_path / "data")
    assert f"resnet8 on mnist: top-1 {record['test_top1']:.2f} %" in done.out

    done = tool("eval", run, "--root", tmp_path)
    assert_refused(
        done, f"no data set at {tmp_path}/MNIST/raw; download it with '.*download.* mnist'"
    )


# Careless inputs.


def test_missing_and_damaged_files_are_named(web, config, monkeypatch, tmp_path):
    serve_mnist(web, monkeypatch)
    download("mnist", tmp_path)
    raw = tmp_path / "data" / "MNIST" / "raw"
    label = raw / "t10k-labels-idx1-ubyte"

    def refused(message, root=tmp_path / "data"):
        with pytest.raises(UserError, match=message):
            get_dataset(config(DATASET__TYPE="mnist", DATASET__ROOT=str(root)), CPU)

    refused(f"no data set at {raw}/MNIST/raw; .*or set DATASET.ROOT to {tmp_path}/data$", raw)
    refused(f"or set DATASET.ROOT to {tmp_path}/data$", raw.parent)
    refused(f"or set DATASET.ROOT to {tmp_path}/data$", tmp_path)
    refused("or set DATASET.ROOT to the folder that holds MNIST/$", tmp_path / "absent")
    refused("DATASET.ROOT .*ubyte is a file; set it to the folder that holds MNIST/$", label)

    whole = label.read_bytes()
    label.write_bytes(whole[:-1])
    refused("raw is damaged: the md5 sum of t10k-labels-idx1-ubyte is not the published one")
    label.unlink()
    refused(
        "raw is damaged: t10k-labels-idx1-ubyte is missing; download it with '.*download.* mnist'"
    )
    shutil.copy(web[1] / f"{label.name}.gz", raw)
    refused(f"{label.name} is missing; unpack {label.name}.gz there, or download it")

    # The command unpacks what was downloaded by hand, and repairs a damaged file.
    shutil.rmtree(web[1])
    download("mnist", tmp_path)
    assert label.read_bytes() == whole


def test_a_damaged_file_is_downloaded_again(web, monkeypatch, tmp_path):
    serve_mnist(web, monkeypatch)
    download("mnist", tmp_path)
    image = tmp_path / "data" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    whole = image.read_bytes()
    image.write_bytes(whole[::-1])
    download("mnist", tmp_path)
    assert image.read_bytes() == whole


def test_svhn_without_scipy(web, config, monkeypatch, tmp_path):
    serve_svhn(web, monkeypatch)
    download("svhn", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(UserError, match="svhn needs the package scipy: pip install scipy$"):
        get_dataset(config(DATASET__TYPE="svhn", DATASET__ROOT=str(tmp_path / "data")), CPU)


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
@pytest.mark.parametrize("name", ["a.gz", "a.zip"])
def test_damaged_archives_are_kept_under_another_name(tmp_path, name, damage):
    whole = np.random.default_rng(0).bytes(999)
    content = gzip.compress(whole) if name == "a.gz" else zipped({"a": whole})
    flipped = bytearray(content)
    flipped[500] ^= 1
    packed = {"cut": content[:500], "flip": bytes(flipped), "other": b"<html>"}

    path = tmp_path / name
    path.write_bytes(packed[damage])
    with pytest.raises(UserError, match=f"{name} is not a sound archive .* to {name}.damaged"):
        unpack(path, tmp_path, {"a": f"md5:{md5(whole)}"})
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.damaged"}


# Tiny-ImageNet.


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tiny_files():
    """The archive's files: two classes, of 4 + 2 images."""
    generator = np.random.default_rng(0)

    def jpeg():
        buffer = io.BytesIO()
        pixels = generator.integers(256, size=(64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "jpeg")
        return buffer.getvalue()

    classes = ("n01443537", "n01629819")
    files = {"words.txt": b"n01443537\tgoldfish\n", "wnids.txt": "\n".join(classes).encode()}
    for name in classes:
        files[f"train/{name}/{name}_boxes.txt"] = b"0 0 1 1"
        for number in range(4):
            files[f"train/{name}/images/{name}_{number}.JPEG"] = jpeg()
    lines = []
    for number in range(4):
        files[f"val/images/val_{number}.JPEG"] = jpeg()
        lines.append(f"val_{number}.JPEG\t{classes[number % 2]}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = jpeg()
    return {f"tiny-imagenet-200/{name}": content for name, content in files.items()}


@pytest.fixture
def tiny_archive(web, monkeypatch):
    url, folder = web
    content = zipped(tiny_files())
    (folder / "tiny-imagenet-200.zip").write_bytes(content)
    (source,) = catalogue.CATALOGUE["tiny_imagenet"]()
    address = f"{url}tiny-imagenet-200.zip"
    monkeypatch.setitem(
        catalogue.CATALOGUE,
        "tiny_imagenet",
        lambda: [source._replace(url=address, check=f"md5:{md5(content)}")],
    )
    return folder


def check_tiny(root, config):
    folder = root / "data" / "tiny-imagenet-200"
    cfg = config(DATASET__TYPE="tiny_imagenet", DATASET__ROOT=str(folder), DATASET__NUM_WORKERS=0)
    data = get_dataset(cfg, CPU)
    assert (data.train.num_images, data.test.num_images, data.num_classes) == (8, 4, 2)
    assert not (folder / "val" / "images").exists()
    files = tiny_files()
    for number, name in enumerate(["n01443537", "n01629819"] * 2):
        image = folder / "val" / name / f"val_{number}.JPEG"
        assert image.read_bytes() == files[f"tiny-imagenet-200/val/images/val_{number}.JPEG"]


def test_tiny_imagenet(tiny_archive, config, tmp_path):
    download("tiny_imagenet", tmp_path)
    check_tiny(tmp_path, config)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"tiny-imagenet-200"}
    assert "already in place" in download("tiny_imagenet", tmp_path)[0]


@pytest.mark.parametrize("moved", [0, 1, 4])
def test_tiny_imagenet_unpacked_by_hand_is_sorted_without_a_download(
    tiny_archive, config, tmp_path, monkeypatch, moved
):
    """Also where the sorting was interrupted."""
    for name, content in tiny_files().items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder = tmp_path / "data" / "tiny-imagenet-200"

    cfg = config(DATASET__TYPE="tiny_imagenet", DATASET__ROOT=str(folder))
    with pytest.raises(UserError, match="val has all images in one folder; '.*download"):
        get_dataset(cfg, CPU)

    replace, calls = catalogue.os.replace, []

    def interrupted(*paths):
        if len(calls) == moved:
            raise KeyboardInterrupt
        calls.append(replace(*paths))

    with monkeypatch.context() as patch:
        patch.setattr(catalogue.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sort_tiny_imagenet(tmp_path / "data")

    shutil.rmtree(tiny_archive)
    assert "already in place" in download("tiny_imagenet", tmp_path)[0]
    check_tiny(tmp_path, config)


def test_annotations_cannot_lead_out_of_the_folder(tmp_path):
    annotations = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    annotations.parent.mkdir(parents=True)
    annotations.write_text("val_0.JPEG\t../../elsewhere\t0\n")
    with pytest.raises(UserError, match="val_annotations.txt is damaged"):
        sort_tiny_imagenet(tmp_path)


def test_absent_tiny_imagenet(config, tmp_path):
    cfg = config(DATASET__TYPE="tiny_imagenet", DATASET__ROOT=str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no data set at .*absent; download it with '.*tiny_imag"):
        get_dataset(cfg, CPU)


# CIFAR, which is read without torchvision.


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_sums_of_cifar_are_those_of_torchvision(name):
    published = getattr(torchvision.datasets, name.upper())
    cifar = catalogue.CIFAR[name]
    assert cifar.folder == published.base_folder
    assert (cifar.archive, cifar.md5) == (published.filename, published.tgz_md5)
    assert list(cifar.train.items()) == [tuple(pair) for pair in published.train_list]
    assert list(cifar.test.items()) == [tuple(pair) for pair in published.test_list]
    assert cifar.meta == {published.meta["filename"]: published.meta["md5"]}
    (source,) = catalogue.CATALOGUE[name]()
    assert source.url == published.url


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_as_by_torchvision(name, tmp_path, monkeypatch):
    published = getattr(torchvision.datasets, name.upper())
    monkeypatch.setattr(published, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    cifar = catalogue.CIFAR[name]
    folder = tmp_path / cifar.folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    for file in (*cifar.train, *cifar.test):
        pixels = generator.integers(256, size=(6, 3072), dtype=np.uint8)
        fine = generator.integers(10, size=6).tolist()
        labels = (
            {"labels": fine} if name == "cifar10" else {"fine_labels": fine, "coarse_labels": [0]}
        )
        (folder / file).write_bytes(pickle.dumps({"data": pixels, **labels}, protocol=2))
    key = published.meta["key"]
    names = [f"class {number}" for number in range(10)]
    (folder / published.meta["filename"]).write_bytes(pickle.dumps({key: names}, protocol=2))

    read = read_cifar(name, tmp_path)
    for part, is_train in ((read.train, True), (read.test, False)):
        expected = published(tmp_path, train=is_train)
        assert torch.equal(part.image, torch.from_numpy(expected.data).permute(0, 3, 1, 2))
        assert part.target.tolist() == expected.targets
    assert read.class_names == expected.classes == names
