"""The golden loss curves: 20 steps of each method on the digits, in float64 on one thread.

python tests/golden/make_curves.py    writes tests/golden/curves/*.txt

The committed curves were made by the code before its restructuring; a change of the code must
reproduce them, unless its commit says why the result changes.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from edkd.engine.build import build_data, build_distiller, build_trainer
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.config.load import load_config
from edkd.models import get_model

CURVES = Path(__file__).parent / "curves"
STEPS = 20

CASES = {
    "NONE": ["NONE"],
    "KD": ["KD"],
    "DKD": ["DKD"],
    "EDKD": ["EDKD"],
    "EDKD_reference": ["EDKD", "EDKD.FORM", "reference"],
    "DML": ["DML"],
    "DML_alternating": ["DML", "DML.UPDATE", "alternating"],
    "ONE": ["ONE"],
    "OKDDip": ["OKDDip"],
    "KDCL": ["KDCL"],
    "KDCL_naive": ["KDCL", "KDCL.ENSEMBLE", "naive"],
    "KDCL_linear": ["KDCL", "KDCL.ENSEMBLE", "linear"],
    "AT": ["AT"],
    "SP": ["SP"],
    "NST": ["NST"],
    "PKT": ["PKT"],
    "RKD": ["RKD"],
    "CC": ["CC"],
    "KDSVD": ["KDSVD"],
    "FITNET": ["FITNET"],
    "VID": ["VID"],
    "OFD": ["OFD"],
    "REVIEWKD": ["REVIEWKD"],
    "DIST": ["DIST"],
    "LUMINET": ["LUMINET"],
    "SKD": ["SKD"],
    "WKD": ["WKD"],
    "SDD": ["SDD"],
    "SDD_dkd": ["SDD", "SDD.BASE", "dkd"],
    "NKD": ["NKD"],
    "USKD": ["USKD"],
    "TTM": ["TTM"],
    "WTTM": ["WTTM"],
    "CTKD": ["CTKD"],
    "NORMKD": ["NORMKD"],
    "NORMKD_dkd": ["NORMKD", "NORMKD.BASE", "dkd"],
    "RLD": ["RLD"],
    "KD_LSKD": ["KD", "DISTILLER.LSKD", "True"],
    "DKD_EAKD": ["DKD", "DISTILLER.EAKD", "True"],
    "CRD": ["CRD", "CRD.NCE.K", "256"],
    "CRD_relax": ["CRD", "CRD.MODE", "relax", "CRD.NCE.K", "64"],
    "SRRL": ["SRRL"],
    "ND": ["ND"],
    "SIMKD": ["SIMKD"],
    "RSD": ["RSD"],
    "MLKD": ["MLKD"],
    "CRLD": ["CRLD", "CRLD.TAU_W", "0.2"],
    "OFAKD": ["OFAKD", "OFAKD.EPS", "[1.0,1.0,1.0,1.0,1.5]"],
    "DEIT": ["DEIT", "DISTILLER.STUDENT", "deit_micro_p8"],
    "DEIT_soft": ["DEIT", "DISTILLER.STUDENT", "deit_micro_p8", "DEIT.FORM", "soft", "DEIT.T", 3],
}


def curve(case: str, steps: int = STEPS) -> list[dict[str, float]]:
    """The terms of the loss in each of the first steps."""
    method, *opts = CASES[case]
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        weights = Path(folder, "teacher")
        save_checkpoint({"model": get_model("cifar", "resnet14", 10).state_dict()}, weights)
        words = ["DATASET.TYPE", "digits", "DISTILLER.TYPE", method]
        words += ["DISTILLER.TEACHER", "resnet14", "DISTILLER.STUDENT", "resnet8"]
        words += ["DISTILLER.TEACHER_CKPT", str(weights), "SOLVER.AMP", "off"]
        cfg = load_config(opts=[*words, *map(str, opts)])
        data = build_data(cfg, device)
        distiller = build_distiller(cfg, data).double()
        trainer = build_trainer(cfg, data, distiller, Path(folder), device)

    distiller.train()
    if distiller.collects:
        gather(distiller, data)
    rows: list[dict[str, float]] = []
    epoch = 0
    while len(rows) < steps:
        epoch += 1
        for inputs in data.train.inputs(epoch):
            if len(rows) < steps:
                batch = data.train.batch(*inputs)
                views = {
                    name: view._replace(image=view.image.double())
                    for name, view in batch.views.items()
                }
                batch = replace(batch, image=batch.image.double(), epoch=epoch, views=views)
                rows.append(one_step(trainer, batch))
    return rows


@torch.no_grad()
def gather(distiller, data) -> None:
    """Statistics of the teacher's outputs for the first epoch."""
    for inputs in data.train.inputs(1):
        batch = data.train.batch(*inputs)
        batch = replace(batch, image=batch.image.double(), epoch=1)
        distiller.collect(distiller.run_teachers(batch), batch)
    distiller.end_collection()


def one_step(trainer, batch) -> dict[str, float]:
    """The terms of the loss of a step, summed over its updates."""
    total: dict[str, float] = {}
    for turn in range(trainer.distiller.turns):
        losses, _ = trainer.train_step.forward(batch, turn)
        trainer.update.backward(losses)
        trainer.update.step(losses, ends_step=turn + 1 == trainer.distiller.turns)
        for name, loss in losses.items():
            if name != "loss":
                total[name] = total.get(name, 0.0) + loss.item()
    return total


def as_text(rows: list[dict[str, float]]) -> str:
    """A line of names, then a line for each step."""
    lines = [" ".join(["step", *rows[0]])]
    for number, row in enumerate(rows, 1):
        lines.append(" ".join([str(number), *map(repr, row.values())]))
    return "\n".join(lines) + "\n"


def from_text(text: str) -> list[dict[str, float]]:
    """The reverse."""
    names, *lines = [line.split() for line in text.splitlines()]
    return [dict(zip(names[1:], map(float, line[1:]), strict=True)) for line in lines]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        (CURVES / f"{case}.txt").write_text(as_text(curve(case)))
        sys.stdout.write(f"{case}\n")
