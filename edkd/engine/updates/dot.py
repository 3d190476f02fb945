"""DOT: separate momentum for the task loss and the distillation loss.

B. Zhao, Q. Cui, R. Song, J. Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023,
arXiv:2307.08436.
"""

from typing import Any

from edkd.engine.momenta import SeveralMomenta
from edkd.engine.update import Losses
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import UPDATES

TASK_TERMS = "loss_ce"


@UPDATES.register("dot")
class DOT(SeveralMomenta):
    """SGD with two momentum buffers (equations 6 and 7).

    v_ce = (mu - DELTA) * v_ce + g_ce + w * theta
    v_kd = (mu + DELTA) * v_kd + g_kd
    theta = theta - lr * (v_ce + v_kd)

    g_ce is the gradient of the terms whose names begin with loss_ce, g_kd that of all other terms,
    mu is SOLVER.MOMENTUM and w is SOLVER.WEIGHT_DECAY. A parameter that only one of the losses
    reaches has momentum mu, and weight decay in either case (as in the published code).

    It takes two backward passes through one graph.
    """

    title = "dot"
    buffers = ("momentum_task", "momentum_kd")
    defaults = dict(
        DELTA=Key(0.075, "difference of the momenta to SOLVER.MOMENTUM", low=0, high=1),
    )

    def own_momenta(self, solver: Any) -> list[float]:
        """Of the task and of the distillation."""
        return [solver.MOMENTUM - solver.DOT.DELTA, solver.MOMENTUM + solver.DOT.DELTA]

    def kind_of(self, name: str) -> int:
        """The task's terms, then all others."""
        return 0 if name.startswith(TASK_TERMS) else 1

    def check_terms(self, losses: Losses) -> None:
        """Both kinds of terms must be there."""
        if all(self.terms_by_kind(losses)):
            return
        names = ", ".join(name for name in losses if name != "loss")
        raise UserError(
            "SOLVER.TRAINER dot needs a method with terms loss_ce* and loss_kd*, but this one "
            f"has {names}; set SOLVER.TRAINER base"
        )
