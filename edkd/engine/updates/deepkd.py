"""DeepKD: separate momentum for the task, the target class and the other classes.

H. Huang, J. Song, Y. Zhang, P. Ren, "DeepKD: A Deeply Decoupled and Denoised Knowledge Distillation
Trainer", NeurIPS 2025, arXiv:2505.15133.
"""

from typing import Any

from edkd.distillers import Distiller, Split
from edkd.engine.momenta import SeveralMomenta
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import UPDATES

KINDS = ("loss_kd_target", "loss_kd_other")
"""Beginnings of the terms of the target class and of the other classes."""


@UPDATES.register("deepkd")
class DeepKD(SeveralMomenta):
    """SGD with three momentum buffers.

    v_task   = (mu + DELTA_TOG) * v_task + g_task + w * theta
    v_target = (mu + DELTA_TCG) * v_target + g_target
    v_other  = (mu + DELTA_NCG) * v_other + g_other
    theta = theta - lr * (v_task + v_target + v_other)

    g_target and g_other are the gradients of the two parts of the distillation loss, see
    `edkd.distillers.Split`; g_task is that of all other terms, so also of a method's loss between
    the images of a batch (as in the published code). mu is SOLVER.MOMENTUM and w is
    SOLVER.WEIGHT_DECAY. It takes three backward passes through one graph.

    Differs from the published code: there the buffer of the task has the momentum of the target
    class, mu + DELTA_TCG, and DELTA_TOG has no effect; weight decay is added to v_target; 1 - p_t
    of each image multiplies the mean of the batch; and TOPK, the same in all epochs, counts the
    target class where it is among the likeliest.
    """

    title = "deepkd"
    buffers = ("momentum_task", "momentum_target", "momentum_other")
    defaults = dict(
        DELTA_TOG=Key(0.075, "added to SOLVER.MOMENTUM for the task", low=-1, high=1),
        DELTA_TCG=Key(-0.075, "the same for the target class", low=-1, high=1),
        DELTA_NCG=Key(0.075, "the same for the other classes", low=-1, high=1),
        DKD=Key(
            False,
            "weight both parts of the distillation loss as DKD does; False: so that their sum is "
            "that of KD. The methods DKD and EDKD have weights of their own",
        ),
        ALPHA=Key(1.0, "with DKD: weight of the target class", low=0.0),
        BETA=Key(8.0, "with DKD: weight of the other classes", low=0.0),
        WARMUP_FACTOR=Key(
            20, "with DKD: the distillation loss grows over these epochs", unit="epochs", low=0
        ),
        TOPK=Key(0, "the likeliest other classes alone count, so many; 0: all count", low=0),
        DYNAMIC_TOPK=Key(
            True,
            "in the first third of all epochs the number grows to TOPK from 5 % of the classes, in "
            "the last third to all of them; False: it is TOPK in all epochs",
        ),
    )

    def own_momenta(self, solver: Any) -> list[float]:
        """Of the task, the target class and the other classes."""
        node = solver.DEEPKD
        return [solver.MOMENTUM + each for each in (node.DELTA_TOG, node.DELTA_TCG, node.DELTA_NCG)]

    def kind_of(self, name: str) -> int:
        """The task's terms, the target class's, those of the other classes."""
        matches = [1 + place for place, kind in enumerate(KINDS) if name.startswith(kind)]
        return matches[0] if matches else 0

    def prepare(self, distiller: Distiller) -> None:
        """Make the method split its distillation loss; UserError if that is impossible."""
        if not distiller.can_split:
            raise UserError(
                f"SOLVER.TRAINER {self.title} needs a method whose loss has a part for the target "
                f"class and one for the others, not {self.cfg.DISTILLER.TYPE}; use KD, DKD, EDKD, "
                "MLKD or CRLD, or set SOLVER.TRAINER base"
            )

        solver = self.cfg.SOLVER
        if solver.MIXUP or solver.CUTMIX:
            raise UserError(
                f"SOLVER.TRAINER {self.title} needs the class of each image, but SOLVER.MIXUP and "
                "SOLVER.CUTMIX mix classes; set them to 0, or SOLVER.TRAINER to base"
            )

        node = solver.DEEPKD
        distiller.split = Split(
            as_dkd=node.DKD,
            alpha=node.ALPHA,
            beta=node.BETA,
            warmup=node.WARMUP_FACTOR,
            top_k=node.TOPK,
            epochs=solver.EPOCHS if node.DYNAMIC_TOPK else 0,
        )
