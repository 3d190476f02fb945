"""Rules between the keys of a recipe and the method."""

from yacs.config import CfgNode

from edkd.distillers import Distiller, find_method, uses_published_style
from edkd.engine.optimizer import LAMB
from edkd.errors import UserError


def check_recipe(cfg: CfgNode, has_own_loaders: bool) -> None:
    """Raise UserError for a key of the recipe that would have no effect, or cannot work.

    Args:
        cfg: the configuration.
        has_own_loaders: whether the caller brings the loaders of the images.
    """
    name = cfg.DISTILLER.TYPE
    method = find_method(name)
    _check_task_loss(cfg.SOLVER, name, method)
    _check_mixing(cfg.SOLVER, name, method)
    _check_shuffling(cfg)

    if cfg.SOLVER.CUDA_GRAPH and cfg.SOLVER.TYPE == LAMB:
        raise UserError(f"SOLVER.CUDA_GRAPH cannot capture SOLVER.TYPE {LAMB}; set it to False")
    if has_own_loaders and cfg.DATASET.RANDAUGMENT:
        raise UserError(
            "DATASET.RANDAUGMENT has no effect on a train_loader of your own; put "
            "torchvision.transforms.v2.RandAugment into the transforms of its data set"
        )
    if has_own_loaders and cfg.DATASET.VIEWS:
        raise UserError(
            "DATASET.VIEWS has no effect on a train_loader of your own, whose views have no "
            "numbers; set it to 0"
        )


def _check_task_loss(solver: CfgNode, name: str, method: type[Distiller]) -> None:
    if solver.BCE_THRESHOLD and solver.TASK_LOSS != "bce":
        raise UserError("SOLVER.BCE_THRESHOLD has no effect without SOLVER.TASK_LOSS bce")

    changed = []
    if solver.LABEL_SMOOTHING:
        changed.append("SOLVER.LABEL_SMOOTHING")
    if solver.TASK_LOSS != "ce":
        changed.append("SOLVER.TASK_LOSS")

    has_own = uses_published_style(method) or method.task_loss is not Distiller.task_loss
    if changed and has_own:
        raise UserError(
            f"{changed[0]} has no effect on DISTILLER.TYPE {name}, which computes its own loss "
            "with the labels; leave the key out, or let the method define `losses`"
        )


def _check_mixing(solver: CfgNode, name: str, method: type[Distiller]) -> None:
    key = "SOLVER.MIXUP" if solver.MIXUP else "SOLVER.CUTMIX"
    is_mixed = solver.MIXUP or solver.CUTMIX
    if is_mixed and method.needs_class_numbers:
        raise UserError(
            f"DISTILLER.TYPE {name} needs the class of each image, but {key} mixes classes; set "
            "SOLVER.MIXUP and SOLVER.CUTMIX to 0, or use a method that takes soft targets"
        )


def _check_shuffling(cfg: CfgNode) -> None:
    if cfg.DISTILLER.SHUFFLE_TEACHER and (cfg.SOLVER.MIXUP or cfg.SOLVER.CUTMIX):
        raise UserError(
            "DISTILLER.SHUFFLE_TEACHER needs the class of each image, but SOLVER.MIXUP and "
            "SOLVER.CUTMIX mix classes; set them to 0"
        )
