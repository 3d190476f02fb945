"""`edkd export`: each format against the checkpoint, metadata, INT8, the card, and mistakes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edkd.commands.export import FORMATS
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.config.load import load_config
from edkd.engine.student_files import StudentFiles
from edkd.export import formats, verify
from edkd.models import get_model
from edkd.registry import MODELS
from tests.commands import exported
from tests.runs import assert_refused, tree

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


SIZED = """
from torch import nn
from edkd.keys import Key
from edkd.registry import MODELS

@MODELS.register("Sized", family="cifar", defaults=dict(WIDTH=Key(16, "channels")))
def sized(num_classes, width):
    network = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return network.append(nn.Linear(width, num_classes))
"""


@pytest.fixture(scope="module")
def teacher_run(server, tmp_path_factory):
    """The folder of a run without a teacher."""
    return exported.train_digits(server, tmp_path_factory.mktemp("export"), "alone")


@pytest.fixture(scope="module")
def run(server, teacher_run):
    """A student of it beside it, exported to ONNX and INT8."""
    opts = ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "resnet8"]
    opts += ["DISTILLER.TEACHER_CKPT", teacher_run / "student_best", "KD.TEMPERATURE", 3]
    folder = exported.train_digits(server, teacher_run.parents[1], "kd", *opts)
    command = server.start("export", folder, "--to", "onnx", "--int8", "--calibrate", 100)
    assert command.wait() == 0, command.err
    (folder / "said.txt").write_text(command.out)
    return folder


@pytest.fixture
def student(run, tmp_path):
    """A copy of the student's file in a folder of its own."""
    path = tmp_path / "student_best"
    path.write_bytes((run / "student_best").read_bytes())
    return path


@pytest.fixture
def library_student(tmp_path):
    """library_student(name): a network of a library in a file, and its plugin."""
    plugin = tmp_path / "networks.py"
    plugin.write_text(exported.PLUGIN)

    def make(name):
        from edkd.engine.config.plugins import import_plugins

        import_plugins([str(plugin)])
        network = exported.briefly_trained(get_model("cifar", name, 10))
        info = exported.digits().info
        facts = dict(architecture=name, dataset="digits", num_classes=10)
        facts |= dict(image_shape=list(info.image_shape), mean=list(info.mean))
        facts |= dict(std=list(info.std), class_names=list(info.class_names))
        save_checkpoint({"model": network.state_dict()} | facts, tmp_path / "student_best")
        return network, tmp_path / "student_best", plugin

    return make


def network_of(path, network=None):
    network = network or get_model("cifar", "resnet8", 10)
    network.load_state_dict(load_checkpoint(path)["model"])
    return network.eval()


def run_onnx(path, image):
    return onnxruntime.InferenceSession(str(path)).run(None, {"image": image.numpy()})[0]


@torch.no_grad()
def assert_agrees(classify, network, number=500):
    """Equal to 1e-4 and the same top-1 on real images, and batches of 1, 2 and 7."""
    images = exported.digits().test.batch(torch.arange(number)).image
    wanted = network(images)[0]
    given = torch.as_tensor(classify(images))
    assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert torch.equal(given.argmax(1), wanted.argmax(1))
    assert len(set(given.argmax(1).tolist())) > 1

    for size in (1, 2, 7):
        some = torch.as_tensor(classify(images[:size]))
        assert (some - wanted[:size]).abs().max() <= 1e-4 * wanted.abs().max()


# Formats.


def test_the_help_has_all_formats():
    """It is printed without an import of torch."""
    assert tuple(formats.FORMATS) == FORMATS


def test_onnx_agrees_with_the_checkpoint_and_has_its_facts(run):
    path = run / "student_best.onnx"
    assert_agrees(lambda image: run_onnx(path, image), network_of(run / "student_best"))
    assert re.search(r"relative difference of logits \d.*top-1 class for 500 of 500", said(run))

    session = onnxruntime.InferenceSession(str(path))
    [image], [logits] = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 3, 32, 32])
    assert (logits.name, logits.shape) == ("logits", ["batch", 10])
    assert onnx.load(path).opset_import[0].version >= 17

    texts = session.get_modelmeta().custom_metadata_map
    content = load_checkpoint(run / "student_best")
    for key in ("class_names", "mean", "std", "image_shape", "resize", "accuracy"):
        assert json.loads(texts[key]) == content[key]
    assert texts["architecture"] == "resnet8"
    assert texts["dataset"] == "digits"
    assert texts["edkd"]


def said(run):
    return (run / "said.txt").read_text()


def test_int8_keeps_the_accuracy_within_three_points(run):
    line = next(line for line in said(run).splitlines() if "int8" in line)
    size, before, after, accuracy = map(
        float, re.search(r"([\d.]+) MB, ([\d.]+) MB.*top-1 ([\d.]+) %, ([\d.]+) %", line).groups()
    )
    assert size < before / 2
    assert abs(after - accuracy) < 3
    content = load_checkpoint(run / "student_best")
    assert accuracy == pytest.approx(content["accuracy"], abs=0.01)

    graph = onnx.load(run / "student_best.int8.onnx")
    assert any(node.op_type == "QuantizeLinear" for node in graph.graph.node)
    texts = {each.key: each.value for each in graph.metadata_props}
    assert texts["precision"] == "int8"
    assert json.loads(texts["class_names"]) == content["class_names"]
    assert "accuracy" not in texts  # that of float32


def test_torch_export_agrees_with_the_checkpoint(tool, student):
    """A file that was moved out of its run explains itself."""
    assert tool("export", student, "--to", "torch-export").code == 0
    extra = {"edkd.json": ""}
    program = torch.export.load(student.with_name("student_best.pt2"), extra_files=extra)
    assert_agrees(program.module(), network_of(student))
    facts = json.loads(extra["edkd.json"])
    assert facts["architecture"] == "resnet8"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my_squeezenet", "my_mobilenet", "my_vit"])
def test_networks_of_libraries_agree(tool, library_student, name):
    """They are wrapped here, and exported without the wrapper and its features."""
    network, path, plugin = library_student(name)
    done = tool("export", path, "--to", "onnx", "--plugin", plugin)
    assert done.code == 0, done.err
    graph = path.with_name("student_best.onnx")
    assert_agrees(lambda image: run_onnx(graph, image), network)


def test_safetensors_load_into_the_plain_model(tool, library_student, tmp_path):
    """Under the library's own keys, and with the facts for this package's commands."""
    import torchvision
    from safetensors.torch import load_file

    network, path, plugin = library_student("my_squeezenet")
    out = tmp_path / "o.safetensors"
    done = tool("export", path, "--to", "safetensors", "--plugin", plugin, "--out", out)
    assert done.code == 0, done.err
    plain = torchvision.models.squeezenet1_1(num_classes=10).eval()
    plain.load_state_dict(load_file(out), strict=True)
    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(image), network(image)[0])

    evaluated = tool("eval", out, "--plugin", plugin)
    assert evaluated.out.startswith("my_squeezenet on digits: top-1 ")


def test_a_model_of_a_plugin_with_keys_of_its_own(tool, tmp_path, monkeypatch, capsys):
    """Its file has the keys, in whatever folder; the card imports the plugin."""
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    plugin = tmp_path / "sized.py"
    plugin.write_text(SIZED)
    words = ["DATASET.TYPE", "digits", "DISTILLER.STUDENT", "Sized", "MODEL.Sized.WIDTH", "3"]
    cfg = load_config(opts=words, plugins=[str(plugin)])
    network = get_model("cifar", "Sized", 10, cfg)
    info = exported.digits().info
    files = StudentFiles(tmp_path, {"student": network}, ["Sized"], info, "test", cfg)
    save_checkpoint(files.content("student"), tmp_path / "student_best")

    done = tool("export", tmp_path / "student_best", "--to", "safetensors", "--plugin", plugin)
    assert done.code == 0, done.err
    [graph] = tmp_path.glob("*.safetensors")
    Image.new("RGB", (32, 32), "green").save(tmp_path / "photo.jpg")
    for more in ([], ["-m", "Sized", "-d", "digits"]):
        words = [tmp_path / "photo.jpg", "--csv", "-", "--top", "1", "--plugin", plugin]
        predicted = tool("predict", graph, *words, *more)
        assert predicted.code == 0, predicted.err

    [card] = tmp_path.glob("*.card.md")
    code = re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)[1]
    assert "# needs sized.py" in code
    MODELS.remove("Sized", "cifar")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.strip() == predicted.out.split(",")[-2]


def test_a_file_that_differs_is_not_written(tool, student, monkeypatch):
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    before = tree(student.parent)
    assert_refused(tool("export", student, "--to", "safetensors"), "differs from the checkpoint")
    assert tree(student.parent) == before


def test_images_that_are_given_and_images_that_are_not_there(tool, student, tmp_path, monkeypatch):
    from edkd.errors import UserError

    photos = exported.write_digits(tmp_path / "photos")
    check = ["export", student, "--to", "safetensors", "--force", "--check"]
    assert "given images: largest" in tool(*check, photos / "3").out

    broken = tmp_path / "broken.jpg"
    broken.write_text("x")
    assert_refused(tool(*check, broken), f"--check: cannot read the image {broken}")
    done = tool(*check, photos / "3", "--check", broken)
    assert "given images: largest" in done.out
    assert f"warning: cannot read the image {broken} (" in done.err

    def absent(cfg, device):
        raise UserError("no folder here")

    monkeypatch.setattr("edkd.export.source.get_dataset", absent)
    done = tool("export", student, "--to", "safetensors", "--force")
    assert "random images, because the test set cannot be read (no folder here)" in done.out
    refused = tool("export", student, "--to", "onnx", "--int8", "--force")
    assert_refused(refused, "--int8 needs the images.*no folder here.*--root")


# The card.


def test_the_card_has_the_figures_of_the_run(run, teacher_run):
    card = (run / "student_best.onnx.card.md").read_text()
    alone = json.loads((teacher_run / "result.json").read_text())["best_test_top1"]
    own = load_checkpoint(run / "student_best")["accuracy"]
    assert f"| teacher resnet8 | {alone:.2f} |" in card
    assert f"| student alone | {alone:.2f} | test images, best epoch, 1 run |" in card
    assert f"| this student, `student_best` | {own:.2f} | test images |" in card
    assert "| parameters | 78,042 |" in card
    assert "KD.TEMPERATURE 3" in card
    assert "DISTILLER.TEACHER_CKPT" in card  # of the command
    assert "licence" in card


@pytest.mark.parametrize(
    ("form", "resize"),
    [("onnx", 40), ("safetensors", 0), pytest.param("torch-export", 40, marks=pytest.mark.slow)],
)
def test_the_program_on_the_card_runs(tool, run, tmp_path, monkeypatch, capsys, form, resize):
    """On a photograph that is neither square nor of the right size, with the result of predict."""
    content = load_checkpoint(run / "student_best") | {"resize": resize}
    save_checkpoint(content, tmp_path / "student_best")
    torch.manual_seed(0)
    pixels = torch.randint(256, (50, 71, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "photo.jpg")

    done = tool("export", tmp_path / "student_best", "--to", form)
    assert done.code == 0, done.err
    [card] = tmp_path.glob("*.card.md")
    code = re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    printed = capsys.readouterr().out.strip()

    words = ["--top", "10", "--csv", "-"]
    rows = tool("predict", tmp_path / "student_best", tmp_path / "photo.jpg", *words).out
    ranked = [row.split(",") for row in rows.splitlines()[1:]]
    assert printed == ranked[0][2]
    logits = np.asarray(found["logits"], dtype=np.float64)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert [float(row[3]) for row in ranked] == pytest.approx(
        sorted(probabilities, reverse=True), abs=2e-6
    )


# Mistakes.


def test_files_that_exist_are_kept(tool, run):
    before = tree(run)
    refused = tool("export", run, "--to", "onnx")
    assert_refused(refused, "student_best.onnx exists already; replace it with --force")
    assert tree(run) == before


def test_mistakes_are_one_line(tool, student, run, tmp_path):
    cases = [
        ((student, "--to", "onxx"), "--to: unknown format 'onxx', did you mean 'onnx'"),
        ((student, "--to", "safetensors", "--int8"), "--int8 writes an ONNX file"),
        ((student, "--to", "onnx", "--out", tmp_path / "x.pt"), "must end in .onnx"),
        ((student, "--to", "onnx", "--out", tmp_path / "no" / "x.onnx"), "there is no folder"),
        ((student, "--to", "onnx", "--calibrate", 0), "at least 1"),
        ((student, "--to", "onnx", "--calibrate", 7), "--calibrate 7 is for --int8"),
        ((student, "--to", "onnx", "--check", tmp_path / "no"), "no image and no folder at"),
        ((tmp_path / "no", "--to", "onnx"), "no file of weights and no folder of a run at"),
        ((tmp_path, "--to", "onnx"), "is not the folder of a run"),
        ((run / "config.yaml", "--to", "onnx"), "is a text file"),
        ((run / "student_best.onnx", "--to", "onnx"), "is an ONNX graph"),
        ((student,), "--to"),
    ]
    for words, message in cases:
        assert_refused(tool("export", *words), message)
    assert [path.name for path in tmp_path.iterdir()] == ["student_best"]


def test_a_truncated_checkpoint_is_refused(tool, student):
    content = student.read_bytes()
    student.write_bytes(content[: len(content) // 2])
    assert_refused(tool("export", student, "--to", "onnx"), "is damaged")


def test_a_run_without_an_epoch_is_refused(tool, run, tmp_path):
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    refused = tool("export", tmp_path, "--to", "onnx")
    assert_refused(refused, "holds no student: its run has not finished an epoch")


def test_a_missing_package_is_named(tool, student, monkeypatch):
    for name, form, extra in (
        ("onnxruntime", "onnx", "export"),
        ("onnxscript", "onnx", "export"),
        ("safetensors.torch", "safetensors", "models"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            refused = tool("export", student, "--to", form)
        assert_refused(refused, f"need.*{name.split('.')[0]}.*pip install 'edkd\\[{extra}\\]'")


def test_a_folder_that_cannot_be_written_is_an_error_of_storage(tool, student, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    refused = tool("export", student, "--to", "onnx")
    assert_refused(refused, "cannot be written; give another with --out", code=5)
    assert list(Path(student.parent).iterdir()) == [student]
