"""Steps of many methods in float64, in this process or in its share of several.

torchrun --nproc-per-node 2 -m tests.distributed.steps OUT CASE...    writes OUT
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch

from edkd import world
from edkd.engine.build import build_data, build_distiller, build_trainer
from edkd.engine.collection import collect
from edkd.engine.config.load import load_config
from tests.golden.make_curves import CASES as CURVES

CASES = CURVES | {
    "AT_shuffled": ["AT", "DISTILLER.SHUFFLE_TEACHER", "True"],
    "FITNET_RKD": ["FITNET+RKD"],
    "KD_dot": ["KD", "SOLVER.TRAINER", "dot"],
    "KD_deepkd": ["KD", "SOLVER.TRAINER", "deepkd"],
    "KD_smooth_clipped": ["KD", "SOLVER.LABEL_SMOOTHING", "0.1", "SOLVER.CLIP_GRAD_NORM", "0.5"],
}

BATCH_SIZE = 9
NUM_IMAGES = 21
"""Two batches of nine and one of three: of four processes, one has no image of the last one."""

TEACHER = "resnet8x4"
STUDENT = "resnet8"


def run(cases):
    """The losses, gradients and weights of an epoch of each case."""
    return {case: run_case(case) for case in cases}


def run_case(case):
    """Three steps: their losses and gradients, the weights after them, the figures of the epoch."""
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config(opts=[*map(str, words_of(case))])
        data = build_data(cfg, device)
        data.train.leave_out(torch.arange(NUM_IMAGES, data.train.set_size))
        torch.manual_seed(0)
        distiller = build_distiller(cfg, data).double()
        with_statistics(distiller, data)
        trainer = build_trainer(cfg, data, distiller, Path(folder), device)

    if distiller.collects:
        data.train.batch = in_double(data.train.batch)
        collect(distiller, data.train, None, None, device, lambda line: None)
    else:
        data.train.batch = in_double(data.train.batch)

    distiller.train()
    distiller.start_epoch(1)
    torch.manual_seed(1)
    return steps_of(trainer) | {"figures": trainer.state.meter.read()}


def words_of(case):
    method, *own = CASES[case]
    words = ["DATASET.TYPE", "digits", "DISTILLER.TYPE", method, "SOLVER.AMP", "off"]
    words += ["DISTILLER.TEACHER", TEACHER, "DISTILLER.STUDENT", STUDENT]
    words += ["SOLVER.BATCH_SIZE", BATCH_SIZE, "DISTILLER.CHECK_TEACHER", False]
    words += ["DISTILLER.TEACHER_CKPT", teacher_file()]
    return [*words, *own]


def teacher_file():
    """Random weights."""
    from edkd.engine.checkpoint import save_checkpoint
    from edkd.models import get_model

    path = Path(tempfile.gettempdir(), f"edkd_teacher_{TEACHER}_{world.rank()}")
    torch.manual_seed(5)
    save_checkpoint({"model": get_model("cifar", TEACHER, 10).state_dict()}, path)
    return path


def in_double(make):
    """A loader's `batch` with images in float64."""

    def double(*inputs):
        batch = make(*inputs)
        views = {
            name: view._replace(image=view.image.double()) for name, view in batch.views.items()
        }
        return dataclasses.replace(batch, image=batch.image.double(), epoch=1, views=views)

    return double


@torch.no_grad()
def with_statistics(distiller, data):
    """Give the teachers the batch statistics of some images."""
    image = data.train.show(torch.arange(NUM_IMAGES), torch.zeros(NUM_IMAGES, dtype=torch.long))
    for teacher in distiller.teachers():
        for module in teacher.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        teacher.train()(image.double())
        teacher.eval()


def steps_of(trainer):
    losses, gradients = [], []
    original = trainer.update.may_update

    def may_update(*args, **kwargs):
        given = [p.grad for p in trainer.update.parameters]
        gradients.append([None if each is None else each.clone() for each in given])
        return original(*args, **kwargs)

    trainer.update.may_update = may_update
    for inputs in trainer.data.train.inputs(1):
        results = trainer.train_step(1, *inputs)
        trainer.state.meter.add(*results, count=trainer.train_step.own_count(results[2]))
        losses.append(mean_losses(trainer, results[0]))
    state = {name: each.clone() for name, each in trainer.distiller.trained_state().items()}
    return {"losses": losses, "gradients": gradients, "weights": state}


def mean_losses(trainer, losses):
    """Those of the whole batch."""
    counts = trainer.data.train.counts
    weight = 1.0 if trainer.distiller.relates_images() else world.weight_of(counts)
    values = torch.stack([loss.detach().double() for loss in losses.values()]) * weight
    world.average([values])
    return dict(zip(losses, values.tolist(), strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    world.start(torch.device("cpu"), 120.0)
    out, *chosen = sys.argv[1:]
    found = run(chosen)
    if world.is_first():
        torch.save(found, out)
    world.end()
