"""Folders of finished runs, as training leaves them."""

import json

import pytest


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
