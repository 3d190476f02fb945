"""The step: what it must not do."""

import pytest
import torch

from edkd.dataset import get_dataset
from edkd.distillers import distiller_dict
from edkd.engine.load_cfg import load_cfg
from edkd.engine.meter import Meter
from edkd.engine.teacher_memo import remember
from edkd.engine.trainer import Trainer
from edkd.models import get_model

CPU = torch.device("cpu")
HOST_READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


def make(method, folder, *opts):
    cfg = load_cfg(
        opts=[
            "LOG.PREFIX",
            str(folder),
            "DATASET.TYPE",
            "digits",
            "DISTILLER.TYPE",
            method,
            "SOLVER.AMP",
            "bf16",
            *opts,
        ]
    )
    student, teacher = get_model("cifar", "resnet8", 10), get_model("cifar", "resnet8", 10)
    trainer = Trainer(cfg, distiller_dict[method](student, teacher, cfg), get_dataset(cfg, CPU), folder, CPU)
    trainer.memo = remember(trainer.distiller, trainer.data.train, cfg, CPU, trainer.amp, [1], lambda line: None)
    if trainer.memo:
        trainer.memo.prepare(1, lambda line: None)
    return trainer


@pytest.mark.parametrize("clip", ["0.0", "1.0"])
@pytest.mark.parametrize("method", sorted(distiller_dict))
def test_a_step_reads_nothing_from_the_device(tmp_path, monkeypatch, method, clip):
    trainer, meter = make(method, tmp_path, "SOLVER.CLIP_GRAD_NORM", clip), Meter()
    trainer.distiller.train()
    inputs = trainer.data.train.inputs(1)
    meter.add(*trainer.train_step(1, *next(inputs)))  # the optimizer makes its state
    for name in HOST_READS:
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name} in the step"))
    meter.add(*trainer.train_step(torch.tensor(1.0), *next(inputs)))
    monkeypatch.undo()
    assert meter.read()["loss"] > 0
