"""The memory of a long run on an image folder."""

import gc
import os
import shutil
from pathlib import Path

import pytest

from edkd.engine.config.load import load_config
from edkd.engine.run import train
from tests.conftest import PLUGIN

ALLOWED = 20 * 2**20
"""Bytes by which allocators and pages that workers stop sharing may differ. The images that are
read in 15 epochs take 30 MiB."""


def resident(process):
    """Bytes of memory of a process and its children, shared pages counted once."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    total = own * 1024
    for task in Path(f"/proc/{process}/task").iterdir():
        total += sum(map(resident, (task / "children").read_text().split()))
    return total


@pytest.mark.slow
@pytest.mark.needs("data/tiny-imagenet-40")
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_memory_of_20_epochs_is_flat(real_data, tmp_path, workers):
    """pytorch/pytorch issue 13246: the memory of data workers grows from epoch to epoch."""
    source = real_data / "data/tiny-imagenet-40"
    for part, count in (("train", 20), ("val", 5)):
        for folder in sorted((source / part).iterdir())[:8]:
            target = tmp_path / "images" / part / folder.name
            target.mkdir(parents=True)
            for file in sorted(folder.rglob("*.JPEG"))[:count]:
                shutil.copy(file, target)

    words = ["DATASET.TYPE", "tiny_folder", "DATASET.ROOT", tmp_path / "images"]
    words += ["DATASET.NUM_WORKERS", workers, "DATASET.ON_BAD_IMAGE", "skip"]
    words += ["DISTILLER.TYPE", "NONE", "DISTILLER.STUDENT", "narrow", "SOLVER.EPOCHS", 20]
    words += ["SOLVER.BATCH_SIZE", 16, "LOG.WANDB", "no", "LOG.PREFIX", tmp_path, "LOG.PRINT", "no"]
    cfg = load_config(opts=list(map(str, words)), plugins=[str(PLUGIN)])

    seen = []

    def look(record):
        gc.collect()
        seen.append(resident(os.getpid()))

    train(cfg, device="cpu", on_epoch=look)
    assert len(seen) == 20
    assert seen[19] - seen[4] < ALLOWED, [round(number / 2**20, 1) for number in seen]
