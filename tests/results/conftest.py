"""Folders of finished runs, as training leaves them."""

import json

import pytest

P240 = {
    "DATASET.TYPE": "cifar100",
    "SOLVER.EPOCHS": 240,
    "SOLVER.WEIGHT_DECAY": 0.0005,
}
"""Settings of the published protocol that are not the defaults."""


@pytest.fixture
def write_run():
    """write_run(folder, seed, curve, lr, settings, **result) -> the folder of a finished run."""

    def write_run(folder, seed=1, curve=(40.0, 70.0), lr=0.05, settings=(), **result):
        about = {
            "dataset": "digits",
            "parameters": 78042,
            "seed": seed,
            "last_test_top1": curve[-1],
            "best_test_top1": max(curve),
        }
        if settings is not None:
            about["settings"] = {"DISTILLER.TYPE": "KD", "SOLVER.LR": lr, **dict(settings)}
        records = [{"epoch": epoch, "test_top1": top1} for epoch, top1 in enumerate(curve, 1)]

        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(about | result))
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / "metrics.jsonl").write_text("".join(lines))
        return folder

    return write_run


@pytest.fixture
def write_method(tmp_path, write_run):
    """write_method("KD", [70.1, 70.4], ...): runs of a method, one for each last accuracy.

    They train resnet20 on CIFAR-100 under P240, with resnet56 as the teacher unless the method is
    NONE. The best epoch is half a point better than the last one. Returns the folder of all runs.
    """
    folder = tmp_path / "runs"

    def write_method(method, tops, name="", student="resnet20", settings=(), **result):
        students = [student] if isinstance(student, str) else student
        about = {"dataset": "cifar100", "method": method, "student": students}
        about["teacher"] = "" if method == "NONE" else "resnet56"
        if about["teacher"]:
            about["teacher_top1"] = [72.34]
        values = P240 | {"DISTILLER.TYPE": method} | dict(settings)

        for seed, top1 in enumerate(tops, 1):
            run = folder / f"{name or method},{students[0]},SEED={seed}"
            curve = (top1 + 0.5, top1)
            write_run(run, seed, curve, settings=values, **(about | result))
        return folder

    return write_method
