"""A finished run that is opened again: its student, teacher and data, and what they return."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from edkd.engine.evaluate import evaluate
from edkd.engine.finished import DataSets, open_run
from edkd.engine.outputs import chosen_batches, collect, loader_of, positions
from edkd.errors import UserError

ALL = ("logits", "pooled_feat", "feats")


@pytest.fixture(scope="module")
def datasets():
    return DataSets()


@pytest.fixture
def opened(digits_runs, datasets):
    """opened("kd1"): that run on the CPU."""
    return lambda name, **options: open_run(
        digits_runs[name], device="cpu", datasets=datasets, **options
    )


def test_outputs_are_those_of_the_evaluation(opened, digits_runs):
    run = opened("kd1", which="latest")
    outputs = collect(run.student, run.data, "test", ALL)
    assert len(outputs.logits) == run.data.test.num_images == len(outputs.target)

    result = json.loads((digits_runs["kd1"] / "result.json").read_text())
    top1 = 100 * (outputs.logits.argmax(1) == outputs.target).double().mean().item()
    assert top1 == pytest.approx(result["last_test_top1"])
    figures = evaluate(lambda image: run.student(image)[0], run.data.test)
    loss = F.cross_entropy(outputs.logits, outputs.target).item()
    assert loss == pytest.approx(figures["loss"], rel=1e-5)

    with torch.no_grad():
        logits = run.student.fc(outputs.pooled_feat.clone())
    torch.testing.assert_close(logits, outputs.logits, rtol=1e-4, atol=1e-4)
    assert outputs.pooled_feat.shape[1:] == (64,)
    assert [each.shape[1] for each in outputs.feats] == run.student.get_stage_channels()
    assert not run.student.training
    assert not outputs.logits.requires_grad


def test_the_teacher_is_that_of_the_run(opened):
    run = opened("kd1")
    teacher = opened("teacher")
    assert run.teacher.name == "resnet20"
    assert run.architecture == "resnet8"
    of_run = collect(run.teacher.network, run.data, limit=50)
    itself = collect(teacher.student, teacher.data, limit=50)
    torch.testing.assert_close(of_run.logits, itself.logits)
    assert run.data is teacher.data


def test_limited_images_are_the_same_for_any_batch_size(opened):
    run = opened("kd1")
    few = collect(run.student, run.data, "test", ALL, limit=40, stages=[0, 2])
    other = opened("kd1", opts=["DATASET.TEST.BATCH_SIZE", "7"])
    assert other.data is not run.data
    same = collect(other.student, other.data, "test", ALL, limit=40, stages=[0, 2])

    assert few.position.tolist() == positions(run.data.test.num_images, 40).tolist()
    assert len(set(few.position.tolist())) == 40
    assert torch.equal(few.position, same.position)
    assert torch.equal(few.target, same.target)
    torch.testing.assert_close(few.logits, same.logits, rtol=1e-4, atol=1e-4)

    every = collect(run.student, run.data)
    torch.testing.assert_close(every.logits[few.position], few.logits, rtol=1e-4, atol=1e-4)
    assert len(few.feats) == 2
    assert few.feats[1].shape == (40, 32)


def test_whole_maps_have_the_pooled_maps_as_means(opened):
    run = opened("alone")
    pooled = collect(run.student, run.data, "test", ["feats"], limit=10)
    whole = collect(run.student, run.data, "test", ["feats"], limit=10, whole_maps=True)
    assert whole.feats[0].shape == (10, 16, 32, 32)
    for means, maps in zip(pooled.feats, whole.feats, strict=True):
        torch.testing.assert_close(maps.mean((2, 3)), means)
    assert not len(pooled.logits)


def test_chosen_classes(opened):
    run = opened("kd1")
    every = collect(run.student, run.data)
    some = collect(run.student, run.data, classes=[3, 7])
    assert set(some.target.tolist()) == {3, 7}
    assert some.position.tolist() == [
        place for place, target in enumerate(every.target.tolist()) if target in (3, 7)
    ]
    with pytest.raises(UserError, match="no test image is of the chosen classes"):
        collect(run.student, run.data, classes=[99])


def test_training_images_are_those_of_the_first_epoch(opened):
    run = opened("kd1")
    loader = loader_of(run.data, "train")
    images = [torch.cat([batch.image for batch in chosen_batches(loader, 64)]) for _ in range(2)]
    assert torch.equal(*images)
    assert len(images[0]) == 64
    assert loader_of(run.data, "val") is run.data.test
    with pytest.raises(UserError, match="no images 'tset'; choose from test, val, train"):
        loader_of(run.data, "tset")


def test_a_file_of_a_cohort(opened, digits_runs):
    students = [opened("dml", which=f"student{number}_best") for number in (1, 2)]
    logits = [collect(run.student, run.data, limit=20).logits for run in students]
    assert not torch.equal(*logits)

    path = digits_runs["dml"] / "student2_best"
    by_path = open_run(path, device="cpu")
    assert by_path.file == path
    assert by_path.folder == digits_runs["dml"]
    assert torch.equal(collect(by_path.student, by_path.data, limit=20).logits, logits[1])


# What is missing.


@pytest.mark.parametrize("name", ["alone", "dml"])
def test_a_method_without_a_teacher(opened, name):
    run = opened(name)
    assert not run.has_teacher
    with pytest.raises(UserError, match="has no teacher"):
        _ = run.teacher


@pytest.fixture
def moved(tmp_path, digits_runs):
    """moved(KEY=text): a copy of the run kd1 whose configuration has another line."""

    def moved(old, new):
        folder = tmp_path / "copy"
        shutil.copytree(digits_runs["kd1"], folder)
        config = folder / "config.yaml"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))
        return folder

    return moved


def test_teacher_weights_that_are_gone(moved, digits_runs):
    weights = f"{digits_runs['teacher']}/student_best"
    folder = moved(weights, "/nowhere/student_best")
    run = open_run(folder, device="cpu")
    with pytest.raises(UserError, match=r"the teacher of the run .*no weights of resnet20 at"):
        _ = run.teacher

    given = open_run(folder, device="cpu", teacher_ckpt=weights)
    assert len(collect(given.teacher.network, given.data, limit=5).logits) == 5


def test_a_teacher_of_other_classes(digits_runs, tmp_path):
    path = tmp_path / "other"
    content = torch.load(digits_runs["teacher"] / "student_best", weights_only=True)
    content["num_classes"] = 7
    content["class_names"] = list("abcdefg")
    torch.save(content, path)
    run = open_run(digits_runs["kd1"], device="cpu", teacher_ckpt=str(path))
    with pytest.raises(UserError, match="was trained on 7 classes|was trained on the 7 classes"):
        _ = run.teacher


def test_a_run_without_weights(moved):
    folder = moved("kd", "kd")
    for file in [*folder.glob("student*"), folder / "best"]:
        file.unlink()
    with pytest.raises(UserError, match="holds no student: .* the file student_best was not kept"):
        open_run(folder)


def test_what_is_no_run(tmp_path, digits_runs):
    with pytest.raises(UserError, match="is not the folder of a run"):
        open_run(tmp_path)
    lone = tmp_path / "student_best"
    shutil.copy(digits_runs["kd1"] / "student_best", lone)
    with pytest.raises(UserError, match="is in no folder of a run"):
        open_run(lone)


def test_an_unknown_stage(opened):
    run = opened("alone")
    with pytest.raises(UserError, match="no stage 9: the network has 4"):
        collect(run.student, run.data, "test", ["feats"], limit=4, stages=[9])
