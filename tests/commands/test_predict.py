"""`edkd predict`: the pixels and figures of evaluation, tables and CSV, and mistakes."""

import csv
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from edkd.commands._options import completion
from edkd.commands.predict import _Csv, _parser
from edkd.dataset import get_dataset
from edkd.dataset.augment import CropFlip
from edkd.dataset.images import read_image
from edkd.dataset.preparing import evaluation_transform
from edkd.dataset.resident import Images, resident_dataset
from edkd.engine.config.load import load_config
from edkd.engine.facts_text import from_text, to_text
from edkd.engine.file_facts import Facts, as_content, facts_of
from edkd.errors import StorageError, UserError
from edkd.export.images import image_files, prepared, spread
from edkd.export.loading import _pixels
from edkd.export.predicting import Prediction, folders_of, label_of
from edkd.export.sessions import open_onnx
from edkd.types import InputSpec
from tests.commands import exported
from tests.runs import assert_refused

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    """The folder of a run of a resnet8, exported to ONNX and safetensors."""
    folder = exported.train_digits(server, tmp_path_factory.mktemp("predict"), "alone")
    for form in ("onnx", "safetensors"):
        code, err = server.run("export", folder, "--to", form)
        assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """All test images of digits as <class>/<number>.png; not to be changed."""
    return exported.write_digits(tmp_path_factory.mktemp("photos"))


def rows_of(done):
    assert done.code == 0, done.err
    return list(csv.DictReader(io.StringIO(done.out)))


@pytest.fixture(scope="module")
def graph(run):
    return run / "student_best.onnx"


# Figures.


def test_the_accuracy_on_files_is_that_of_the_run(tool, run, photos):
    """So the pixels are those of evaluation."""
    result = json.loads((run / "result.json").read_text())
    done = tool("predict", run, photos, "--labels")
    assert f"top-1 {result['best_test_top1']:.2f} %" in done.out
    lines = done.out.splitlines()
    assert len([line for line in lines if line.startswith(str(photos))]) == 898

    # "see the wrong ones"
    [path, named] = lines[lines.index("wrong:") + 1].strip().split(": ")
    assert named.split()[0] != path.split("/")[-2]


@pytest.mark.parametrize(
    ("images", "path", "label"),
    [
        ("3/photos", "3/photos/unknown/a.png", ""),
        ("3/photos", "3/photos/7/more/a.png", "7"),
        ("3", "3/a.png", "3"),
        ("3/more/..", "3/more/../a.png", "3"),
        ("3/a.png", "3/a.png", "3"),
        ("3/more/a.png", "3/more/a.png", ""),
    ],
)
def test_labels_are_names_of_folders_that_are_given(tmp_path, monkeypatch, images, path, label):
    """A folder around all images may have the name of a class by chance."""
    for folder in ("3/photos/unknown", "3/photos/7/more", "3/more"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert label_of(path, ("3", "7"), folders_of([images])) == label


def test_checkpoint_onnx_and_safetensors_predict_the_same(tool, run, graph, photos):
    some = [photos / "3", photos / "7"]
    rows = rows_of(tool("predict", run, *some, "--csv", "-"))
    assert len(rows) == 5 * len([*some[0].iterdir(), *some[1].iterdir()])
    for other in (graph, run / "student_best.safetensors"):
        rows = rows_of(tool("predict", run, *some, "--csv", "-"))
        others = rows_of(tool("predict", other, *some, "--csv", "-"))
        for row, same in zip(rows, others, strict=True):
            assert float(row.pop("probability")) == pytest.approx(
                float(same.pop("probability")), abs=1e-5
            )
            assert row == same


def test_a_moved_file_and_any_batch_size_predict_the_same(tool, run, graph, photos, tmp_path):
    whole = tool("predict", graph, photos / "1").out
    moved = shutil.copy(graph, tmp_path / "moved.onnx")
    assert tool("predict", moved, photos / "1", "--batch-size", 7).out == whole
    moved = shutil.copy(run / "student_best", tmp_path / "moved")
    assert tool("predict", moved, photos / "1", "--batch-size", 1).out == whole


def test_single_images_get_five_classes(tool, graph, photos, tmp_path):
    image = next((photos / "0").iterdir())
    lines = tool("predict", graph, image).out.splitlines()
    assert lines[0] == str(image)
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)

    out = tmp_path / "o.csv"
    done = tool("predict", graph, image, "--top", 100, "--csv", out)
    assert done.out == f"written to {out}\n"
    rows = list(csv.DictReader(out.open()))
    assert [int(row["rank"]) for row in rows] == list(range(1, 11))
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)


def test_two_processes_may_write_one_table(tmp_path, monkeypatch):
    """The other one writes it between the two steps of this one."""
    path = tmp_path / "o.csv"
    first, second = _Csv(str(path)), _Csv(str(path))
    first.add(Prediction("a", ["cat"], [1.0]))
    rename = os.replace

    def replace(*files):
        monkeypatch.setattr(os, "replace", rename)
        second.end()
        rename(*files)

    monkeypatch.setattr(os, "replace", replace)
    first.end()
    assert path.read_text() == "path,rank,class,probability\na,1,cat,1.000000\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="cannot write --csv .*no/o.csv"):
        _Csv(str(tmp_path / "no" / "o.csv")).end()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [0, 40])
def test_files_are_prepared_as_by_torchvision(tmp_path, interpolation, resize):
    """Bit for bit, for images of odd sizes, one of them turned by EXIF and one transparent."""
    from torchvision.transforms import v2

    torch.manual_seed(0)
    spec = InputSpec((3, 32, 36), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), resize, interpolation)
    mode = v2.InterpolationMode(interpolation)
    steps = [v2.Resize(resize, mode), v2.CenterCrop((32, 36))] if resize else None
    steps = steps or [v2.Resize((32, 36), mode)]
    wanted = v2.Compose([*steps, v2.PILToTensor()])

    exif = Image.Exif()
    exif[0x0112] = 6
    for number, (size, mode) in enumerate([((33, 90), "RGB"), ((201, 57), "RGBA")]):
        pixels = torch.randint(256, (*size, len(mode)), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", exif=exif)

    files = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    [batch] = prepared(files, spec, 8)
    assert batch.paths == files
    for file, image in zip(files, batch.image, strict=True):
        uint8 = wanted(read_image(file))
        assert torch.equal(evaluation_transform(spec)(read_image(file)), uint8)
        mean, std = (torch.tensor(each)[:, None, None] for each in (spec.mean, spec.std))
        assert torch.equal(image, (uint8.float() / 255 - mean) / std)


@pytest.mark.parametrize("size", [(28, 28), (27, 30)])
def test_files_are_padded_as_the_gray_images_of_a_data_set(tmp_path, monkeypatch, size):
    """Those of MNIST; by the facts in a file, and by the program on the card of an export."""
    torch.manual_seed(0)
    gray = torch.randint(256, (2, *size), dtype=torch.uint8)
    images = Images.from_gray(gray, torch.tensor([0, 1]), size=32)
    cfg = load_config(opts=["DATASET.TYPE", "digits"])
    data = resident_dataset(cfg, exported.CPU, images, images, CropFlip(), (0.4,) * 3, (0.3,) * 3)

    saved = from_text(to_text(as_content(Facts(input=data.info.preparation))))
    spec = facts_of(saved).input
    assert spec == data.info.input
    Image.fromarray(gray[0].numpy()).save(tmp_path / "photo.png")
    [batch] = prepared([str(tmp_path / "photo.png")], spec, 8)
    wanted = data.test.batch(torch.arange(1)).image
    assert torch.equal(batch.image, wanted)
    assert completion(_parser().parse_args(["m", "i"]))(spec) == spec

    monkeypatch.chdir(tmp_path)
    code = "\n".join(["import numpy as np", "from PIL import Image", *_pixels(spec)])
    found = {}
    exec(code.replace("photo.jpg", "photo.png"), found)
    assert torch.allclose(torch.from_numpy(found["x"]), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["folder", "tiny_imagenet", "imagenet"])
def test_files_are_prepared_as_by_the_data_set(tmp_path, name):
    """Photographs that are not square; equal to the batches of the test set, bit for bit."""
    torch.manual_seed(0)
    for part in ("train", "val"):
        for number in range(4):
            size = (60 + 7 * number, 130 - 11 * number, 3)
            place = tmp_path / part / f"n0{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, size, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(place / f"{number}.png")

    opts = ["DATASET.TYPE", name, "DATASET.ROOT", str(tmp_path), "DATASET.NUM_WORKERS", "0"]
    opts += ["DISTILLER.STUDENT", "cifar/resnet8", "DISTILLER.TYPE", "NONE"]
    data = get_dataset(load_config(opts=opts), exported.CPU)
    [batch] = data.test.epoch()
    [files] = prepared(image_files([str(tmp_path / "val")]), data.info.input, 8)
    assert torch.equal(files.image, batch.image)


def test_images_for_checks_are_spread_over_a_set():
    """An image folder is in the order of its classes."""
    loader = exported.digits().test
    loader.batch_size = 10
    images = torch.cat(list(spread(loader, 35)))
    assert len(images) == 35
    starts = [0, 220, 450, 670]
    assert torch.equal(images[20:30], loader.batch(torch.arange(450, 460)).image)
    assert torch.equal(images[30:], loader.batch(torch.arange(starts[3], starts[3] + 5)).image)


# Files of others.


def test_a_graph_without_metadata_needs_the_preparation(tool, graph, photos, tmp_path):
    model = onnx.load(graph)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    refused = tool("predict", tmp_path / "other.onnx", photos / "1")
    assert_refused(refused, "other.onnx does not say how images.*--size, --mean and --std.*--names")

    (tmp_path / "names.txt").write_text("\n".join(f"digit {number}" for number in range(10)))
    how = ["--size", 32, "--mean", "0.306,0.306,0.306", "--std", "0.324,0.324,0.324"]
    words = [tmp_path / "other.onnx", photos / "1", *how]
    numbers = rows_of(tool("predict", *words, "--csv", "-"))
    named = rows_of(tool("predict", *words, "--csv", "-", "--names", tmp_path / "names.txt"))
    assert [f"digit {row['class']}" for row in numbers] == [row["class"] for row in named]
    assert numbers == rows_of(tool("predict", graph, photos / "1", "--csv", "-"))

    (tmp_path / "names.txt").write_text("one\ntwo")
    refused = tool("predict", *words, "--names", tmp_path / "names.txt")
    assert_refused(refused, "2 class names, but the network has 10")
    assert_refused(tool("predict", *words[:2], *how[2:], "--size", 64), "takes images of")
    assert_refused(tool("predict", *words, "--mean", "0.5"), "three numbers with commas")


def small_graph(path, node, shape):
    """Write a graph that applies a node to images of a shape."""
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, None)
    parts = onnx.helper.make_graph([node], "small", [image], [output])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(parts, opset_imports=[opset], ir_version=8), path)
    return open_onnx(path)


@pytest.mark.parametrize("number", [1, 4, 6])
def test_a_graph_with_a_fixed_batch_takes_any_number(tmp_path, number):
    node = onnx.helper.make_node("Flatten", ["image"], ["output"])
    model = small_graph(tmp_path / "fixed.onnx", node, [4, 3, 2, 2])
    image = torch.randn(number, 3, 2, 2)
    assert torch.equal(model.classify(image), image.flatten(1))


@pytest.mark.parametrize("operation", ["Relu", "ReduceMax"])
def test_a_graph_that_is_no_classifier(tmp_path, operation):
    """As one for segmentation."""
    node = onnx.helper.make_node(operation, ["image"], ["output"])
    model = small_graph(tmp_path / "other.onnx", node, ["batch", 3, 2, 2])
    with pytest.raises(UserError, match=r"other.onnx is no classifier of images: .* not \(2, cl"):
        model.classify(torch.randn(2, 3, 2, 2))


# Mistakes.


def test_logits_that_are_not_finite(tool, graph, photos):
    """An accuracy was printed for them."""
    words = [graph, photos / "1", "--mean", "1e38,1e38,1e38", "--std", "1e-3,1e-3,1e-3"]
    done = tool("predict", *words, "--labels")
    assert_refused(done, f"the logits for {photos}/1/.* are not finite", code=3)


def test_an_image_that_is_given_twice(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    assert image_files(["./a.png", "a.png", str(tmp_path), "."]) == ["./a.png"]


def test_bad_images_are_named_and_the_others_predicted(tool, graph, photos, tmp_path):
    good = next((photos / "4").iterdir())
    shutil.copy(good, tmp_path / "a.png")
    shutil.copy(good, tmp_path / "z.png")
    (tmp_path / "empty.png").touch()
    content = good.read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    Image.fromarray(np.zeros((5, 5), np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "Thumbs.db").write_text("x")

    done = tool("predict", graph, tmp_path)
    assert done.code == 2
    assert [line.split()[0] for line in done.out.splitlines()] == [
        str(tmp_path / "a.png"),
        str(tmp_path / "z.png"),
    ]
    warnings = done.err.splitlines()
    for name in ("empty.png", "half.png", "float.tiff"):
        assert any(f"cannot read the image {tmp_path / name} (" in line for line in warnings)
    assert warnings[-1].startswith("edkd: error: 3 of 5 images cannot be read")


def test_mistakes_are_one_line(tool, run, graph, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.onnx").write_bytes(graph.read_bytes()[:5000])
    (tmp_path / "none.safetensors").write_bytes(
        (run / "student_best.safetensors").read_bytes()[:99]
    )
    image = photos / "1"
    cases = [
        ((graph, tmp_path / "empty"), "no images in .*empty"),
        ((graph, tmp_path / "no.jpg"), "no image and no folder at .*no.jpg"),
        ((graph, run / "config.yaml"), "does not have the extension of an image"),
        ((graph,), "IMAGE_OR_FOLDER"),
        ((tmp_path / "no.onnx", image), "no file of weights and no folder of a run"),
        ((tmp_path / "bad.onnx", image), "bad.onnx is damaged, or onnxruntime cannot"),
        ((tmp_path / "none.safetensors", image), "is damaged|is a text|not a file"),
        ((next(image.iterdir()), image), "is a picture"),
        ((graph, image, "--csv", tmp_path / "a.png"), "must end in .csv"),
        ((graph, image, "--csv", tmp_path / "no" / "a.csv"), "there is no folder"),
        ((graph, image, "--top", 0), "at least 1"),
        ((graph, image, "--device", "cuda"), "run on the CPU"),
        ((graph, image, "--names", tmp_path / "no.txt"), "--names .*no.txt cannot be read"),
        ((graph, image, "--size", "x"), "no size in pixels"),
        ((graph, image, "-m", "resnet8"), "-m cannot be used with .*.onnx: an ONNX graph is"),
        ((graph, image, "-d", "digits", "--which", "best"), "-d, --which cannot be used"),
        ((graph, image, "--plugin", "no.py"), "--plugin cannot be used"),
        ((graph, image, "--mean", "inf,nan,1"), "three numbers with commas"),
        ((graph, image, "--std", "1,nan,1"), "three numbers with commas"),
        ((graph, image, "--std", "0,0,0"), "0,0,0 must be three numbers above 0"),
    ]
    for words, message in cases:
        assert_refused(tool("predict", *words), message)

    shutil.copy(next(image.iterdir()), tmp_path / "a.png")
    assert_refused(
        tool("predict", graph, tmp_path / "a.png", "--labels"), "no image is in a folder"
    )


def test_a_missing_package_is_named(tool, graph, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = "need the package onnxruntime: pip install 'edkd\\[export\\]'"
    assert_refused(tool("predict", graph, photos / "1"), message)
