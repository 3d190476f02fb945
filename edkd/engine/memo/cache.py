"""Whether a method can use cached logits, and the cache of all its teachers and views."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edkd import world
from edkd.dataset import NumberedLoader
from edkd.distillers import Distiller, uses_published_style
from edkd.engine.memo.memo import Say, TeacherMemo, memo_settings
from edkd.engine.memo.probe import reason_against
from edkd.engine.memo.rows import LOGITS, POOLED
from edkd.engine.memo.stand_in import StandIn
from edkd.engine.memo.store import MAX_KEYS
from edkd.models import Resize
from edkd.types import Batch


class TeacherCache:
    """The cached outputs of all teachers and views of a method.

    Args:
        memos: one for each teacher and view.
        stand_ins: one for each teacher.
    """

    def __init__(self, memos: Sequence[TeacherMemo], stand_ins: Sequence[StandIn]) -> None:
        self.memos = list(memos)
        self.stand_ins = list(stand_ins)

    def prepare(self, epoch: int, show: Say) -> None:
        """Make the outputs of an epoch available; those that are not cached are computed.

        Args:
            show: called with the progress, often.
        """
        for memo in self.memos:
            memo.prepare(epoch, show)

    def expect(self, batch: Batch) -> None:
        """Announce the next batch."""
        for stand_in in self.stand_ins:
            stand_in.expect(batch)


def attach(
    distiller: Distiller,
    loader: Any,
    cfg: Any,
    device: torch.device,
    amp: torch.dtype | None,
    epochs: Sequence[int],
    say: Say,
) -> TeacherCache | None:
    """Give a method cached outputs instead of its teachers, if it needs no others.

    Args:
        distiller: on the device; it is given stand-ins for its teachers.
        loader: of the training images.
        cfg: TEACHER_MEMO, DATASET.TYPE, DISTILLER.TEACHER and LOG.PREFIX are read.
        amp: precision in which the teachers run; None: float32.
        epochs: that will run.
        say: called with lines for the log.

    Returns:
        None if the teachers run in every step; a line says why, unless the user switched the cache
        off or the method has no teacher.
    """
    detach(distiller)
    if getattr(loader, "listeners", None):  # those of an earlier cache
        loader.listeners.clear()
    teachers = distiller.teachers()
    if not cfg.TEACHER_MEMO.ENABLED or not distiller.needs_teacher or not teachers:
        return None

    reasons = world.gather_objects(why_not(distiller, loader, amp, device))
    reason = next(filter(None, reasons), "")
    if reason:
        say(f"teacher cache: off ({reason}); the teacher runs in every step")
        return None

    memos: list[TeacherMemo] = []
    stand_ins: list[StandIn] = []
    for number, teacher in enumerate(teachers):
        own = make_memos(distiller, number, loader, cfg, device, amp, say)
        tables = {memo.view: memo.tables for memo in own}
        places = own[0].parts.places if own[0].parts else None
        stand_in = StandIn(teacher, tables, own[0].form.outputs, places)
        put_in_place(distiller, number, stand_in)
        memos += own
        stand_ins.append(stand_in)

    for memo in memos:
        for line in (*memo.others(), memo.outlook(epochs)):
            say(line)
    return TeacherCache(memos, stand_ins)


def make_memos(
    distiller: Distiller,
    number: int,
    loader: NumberedLoader,
    cfg: Any,
    device: torch.device,
    amp: torch.dtype | None,
    say: Say,
) -> list[TeacherMemo]:
    """The cached outputs of a method's teacher, for each view that the method uses.

    Args:
        number: of the teacher, from 0.
    """
    teacher = distiller.teachers()[number]
    settings = memo_settings(cfg, number)
    features = features_used(distiller)
    return [
        TeacherMemo(teacher, loader, view, settings, device, amp, say, features)
        for view in views_used(distiller, loader)
    ]


# Whether the cache can serve a method.


def why_not(
    distiller: Distiller, loader: Any, amp: torch.dtype | None, device: torch.device
) -> str:
    """Why cached outputs do not suffice; "" if they do."""
    if not isinstance(loader, NumberedLoader):
        return loader.not_numbered

    reason = _why_not_loader(loader, views_used(distiller, loader))
    if reason:
        return reason

    teachers = distiller.teachers()
    if any(has_foreign_hooks(teacher) for teacher in teachers):
        return "the method registers hooks on the teacher"

    not_cached = [name for name in distiller.teacher_needs if name not in (LOGITS, POOLED)]
    if not runs_networks_itself(distiller):
        return f"the method reads the teacher's {', '.join(not_cached)}" if not_cached else ""

    if len(teachers) > 1:
        return "the method runs several teachers itself"
    batch = next(iter(loader.epoch(1)))
    return reason_against(distiller, teachers[0], batch, amp, device)


def runs_networks_itself(distiller: Distiller) -> bool:
    """Whether only a trial step can show how a method uses its teacher."""
    cls = type(distiller)
    return uses_published_style(cls) or cls.training_step is not Distiller.training_step


def views_used(distiller: Distiller, loader: NumberedLoader) -> tuple[str, ...]:
    """The views of which a method needs the teacher's outputs.

    A method with one view, or one that runs the networks itself, gets `batch.image`, which is the
    first view of the loader.
    """
    if len(distiller.views) > 1 and not runs_networks_itself(distiller):
        return distiller.views
    return loader.views[:1]


def features_used(distiller: Distiller) -> tuple[str, ...]:
    """The features that a method reads of a teacher and the cache can serve."""
    if runs_networks_itself(distiller):
        return ()
    return tuple(name for name in distiller.teacher_needs if name == POOLED)


def has_foreign_hooks(teacher: nn.Module) -> bool:
    """Whether there are forward hooks on a teacher besides methods of its own modules.

    The hook that resizes the images of a network of one size is its own.
    """
    own = {id(module) for module in teacher.modules()}
    others = [hook for hook in _hooks(teacher) if not isinstance(hook, Resize)]
    return any(id(getattr(hook, "__self__", None)) not in own for hook in others)


def _hooks(teacher: nn.Module) -> Iterator[Any]:
    for module in teacher.modules():
        yield from module._forward_hooks.values()
        yield from module._forward_pre_hooks.values()


def _why_not_loader(loader: NumberedLoader, views: Sequence[str]) -> str:
    for view in views:
        num_views = loader.augmentations[view].num_views
        if loader.set_size * num_views > MAX_KEYS:
            return f"{loader.set_size} images with {num_views} views each are too many keys"

    index, _ = loader.order(1)
    if len(np.unique(index.numpy())) < len(index):
        return "an epoch contains images more than once"
    return ""


# Stand-ins in the place of teachers.


def put_in_place(distiller: Distiller, number: int, stand_in: StandIn) -> None:
    """Give a method a stand-in for its teacher of this number, from 0."""
    distiller.cached_teachers[number] = stand_in
    if runs_networks_itself(distiller):
        _replace_child(distiller, stand_in.teacher, stand_in)


def detach(distiller: Distiller) -> None:
    """Undo `attach`: the teachers are in their places again."""
    for module in list(distiller.modules()):
        if isinstance(module, StandIn):
            _replace_child(distiller, module, module.teacher)
    distiller.cached_teachers.clear()


def _replace_child(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module wherever it is a child, under whatever name."""
    owners = [module for module in root.modules() if module is not old and module is not new]
    for owner in owners:
        for name, child in owner._modules.items():
            if child is old:
                owner._modules[name] = new
