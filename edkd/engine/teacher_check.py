"""The accuracy of each teacher before the first step, compared with chance and with its claim.

A teacher whose images are prepared in another way than in its training raises no error, but its
students learn wrong predictions. Its accuracy shows that before the first step.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from edkd import world
from edkd.dataset import Loader
from edkd.dataset.identity import tensor_hash
from edkd.dataset.sampling import random_state, set_random_state
from edkd.engine.checkpoint import fingerprint
from edkd.engine.config.compare import identifying
from edkd.engine.device import autocast, precision_name
from edkd.engine.evaluate import evaluate
from edkd.engine.file_facts import noted_facts
from edkd.engine.memo.accuracy import Accuracy, accuracy_file, read_accuracy, write_accuracy
from edkd.engine.memo.memo import Say, memo_settings
from edkd.engine.weight_source import is_of_library
from edkd.errors import NonFiniteError, warn
from edkd.keys import Key

if TYPE_CHECKING:
    from edkd.engine.trainer import Trainer

KEYS = {
    "DISTILLER.CHECK_TEACHER": Key(
        True,
        "log the accuracy of each teacher before the first step, and warn if it is near chance or "
        "far below the claim of its file or library",
        free_on_resume=True,
        names_run=False,
    ),
}

FEW_CLASSES = 10
"""With at least so many, an accuracy below 2 / C counts as near chance.

Where the classes are in another order, one of them on average keeps its place. With fewer classes,
2 / C would be an accuracy that a weak teacher may have."""

DEVIATIONS = 3.0
"""Standard deviations of an accuracy on N images that count as noise."""

CLAIM_MARGIN = 5.0
"""Points below the claim that count as far. Another library's resize, another precision or other
held-out images cost up to two points; another normalisation costs more than five."""

_SAMPLE = 16
"""Images that are run to recognise a teacher."""

_CAUSES = (
    "likely causes: it was trained too little, or with another normalisation (mean and std), "
    "another order of the classes, another data set or another resize"
)
_REMEDY = (
    "give weights that were trained on this data set (DISTILLER.TEACHER_CKPT, DATASET.TYPE), or "
    "set DISTILLER.CHECK_TEACHER False to skip this check"
)


class Claim(NamedTuple):
    """The accuracy of a teacher according to its file or library."""

    top1: float
    """In percent."""
    where: str
    """As "its file claims"."""
    dataset: str
    """On which it was measured; "" where that is not known."""


def check_teachers(trainer: "Trainer") -> None:
    """Log the accuracy of each teacher on the images that choose the best epoch.

    A resumed run keeps the figures of its beginning. Random state and weights stay as they are.

    Args:
        trainer: gets the accuracies in `state.teacher_top1`.

    Raises:
        NonFiniteError: a teacher's logits are not finite.
    """
    state = trainer.state
    is_resumed = state.epochs_done > 0 or state.step_done > 0
    is_wanted = trainer.cfg.DISTILLER.CHECK_TEACHER and trainer.distiller.needs_teacher
    if is_resumed or not is_wanted:
        return

    before = random_state()
    try:
        teachers = trainer.distiller.teachers()
        state.teacher_top1 = [_check(trainer, *pair) for pair in enumerate(teachers)]
    finally:
        set_random_state(before)


def _check(trainer: "Trainer", number: int, teacher: nn.Module) -> float:
    """Log a teacher's accuracy, in percent, and return it.

    Args:
        number: of the teacher, from 0.
    """
    name = _name(trainer, number)
    loader = _loader(trainer)
    images = f"{loader.num_images} {trainer.split} images"

    figures, is_stored = _figures(trainer, number, teacher, images)
    top1 = figures["top1"]
    claim = _claim(name, teacher)
    is_same = claim is not None and claim.dataset in ("", trainer.cfg.DATASET.TYPE)
    notes = _notes(claim, is_same, is_stored)
    trainer.logger.say(f"teacher {name}: top-1 {top1:.2f} % on the {images}{notes}")

    problem = near_chance(top1, loader.num_images, _chance(trainer))
    if not problem and claim and is_same:
        problem = far_below(top1, loader.num_images, claim)
    if problem:
        text = f"the teacher {name} has top-1 {top1:.2f} % on the {images}, {problem}"
        if world.is_first():
            warn(f"{text}; {_CAUSES}; {_REMEDY}")
        trainer.logger.say(f"warning: {text}; {_CAUSES}; {_REMEDY}")
    return top1


def _notes(claim: Claim | None, is_same: bool, is_stored: bool) -> str:
    """As " (its file claims 72.63 %)"; "" where there is nothing to note.

    Args:
        claim: of the teacher.
        is_same: whether the claim is about this data set.
        is_stored: whether an earlier run has measured the accuracy.
    """
    notes = []
    if claim:
        elsewhere = "" if is_same else f" on {claim.dataset}"
        notes.append(f"{claim.where} {claim.top1:.2f} %{elsewhere}")
    if is_stored:
        notes.append("measured by an earlier run")
    return f" ({'; '.join(notes)})" if notes else ""


# What counts as a problem.


def near_chance(top1: float, num_images: int, chance: "Chance") -> str:
    """Why an accuracy in percent is near that of a guess; "" where it is not."""
    guess = chance.guess
    noise = DEVIATIONS * math.sqrt(guess * (1 - guess) / num_images)
    margin = noise
    if chance.num_classes >= FEW_CLASSES:
        margin = max(noise, 1 / chance.num_classes)

    if top1 / 100 >= guess + margin:
        return ""
    return f"which is near chance ({100 * guess:.2f} %)"


def far_below(top1: float, num_images: int, claim: Claim) -> str:
    """Why an accuracy in percent is far below a claim; "" where it is not."""
    share = claim.top1 / 100
    noise = 100 * DEVIATIONS * math.sqrt(share * (1 - share) / num_images)
    if top1 >= claim.top1 - max(CLAIM_MARGIN, noise):
        return ""
    return f"but {claim.where} {claim.top1:.2f} %"


class Chance(NamedTuple):
    """The accuracy of a guess."""

    num_classes: int
    guess: float
    """The share of the most frequent class, 1 / C where it is not known."""


def _chance(trainer: "Trainer") -> Chance:
    info = trainer.data.info
    guess = 1 / info.num_classes
    targets = info.targets
    if targets is not None and len(targets):
        most = torch.bincount(targets.flatten().long()).max().item()
        guess = max(guess, most / len(targets))
    return Chance(info.num_classes, guess)


def _claim(name: str, teacher: nn.Module) -> Claim | None:
    """What is stated with a teacher's weights; None where nothing is."""
    facts = noted_facts(teacher)
    if facts.accuracy is None:
        return None
    is_librarys = is_of_library(name) and not facts.dataset
    where = "its library claims" if is_librarys else "its file claims"
    return Claim(facts.accuracy, where, facts.dataset)


# The pass over the images.


def _figures(
    trainer: "Trainer", number: int, teacher: nn.Module, images: str
) -> tuple[dict[str, float], bool]:
    """Top-1, top-5 and loss, and whether an earlier run has stored them."""
    cfg = trainer.cfg
    if not cfg.TEACHER_MEMO.ENABLED or not trainer.data.info.input:
        return measured(trainer, number, teacher), False

    settings = memo_settings(cfg, number)
    identity = _identity(trainer, teacher, images)
    path = accuracy_file(settings.folder, settings.dataset, settings.teacher, identity)
    stored = world.from_first(lambda: read_accuracy(path))
    if stored is not None:
        return stored.figures, True

    figures = measured(trainer, number, teacher)
    if math.isfinite(figures["loss"]) and world.is_first():
        precision = precision_name(trainer.amp)
        found = Accuracy(settings.dataset, settings.teacher, images, precision, figures)
        write_accuracy(path, found, settings.max_bytes, trainer.logger.say)
    return figures, False


def _identity(trainer: "Trainer", teacher: nn.Module, images: str) -> list[Any]:
    """All that decides the figures: weights, network, images, their preparation, precision.

    The code of a network decides them too, so that its logits for the first images are part of it.
    """
    info = trainer.data.info
    settings = identifying(trainer.cfg)
    first = next(iter(_loader(trainer).epoch()))
    with torch.no_grad(), autocast(trainer.amp, trainer.device):
        logits = teacher(first.image[:_SAMPLE])[0]
    return [
        fingerprint(teacher),
        repr(teacher),
        tensor_hash(logits),
        {key: value for key, value in settings.items() if key.startswith("DATASET.")},
        dict(info.identity),
        repr(info.input),
        [tensor_hash(first.image), tensor_hash(first.target)],
        images,
        [precision_name(trainer.amp), trainer.device.type],
    ]


def measured(trainer: "Trainer", number: int, teacher: nn.Module) -> dict[str, float]:
    """Run a teacher on the images that choose the best epoch.

    Args:
        number: of the teacher, from 0.

    Returns:
        Top-1 and top-5 in percent, and the mean cross-entropy, loss.

    Raises:
        NonFiniteError: its logits for usable images are not finite.
    """
    loader = _loader(trainer)
    run = _Run(teacher, len(loader), trainer.logger.show)
    with autocast(trainer.amp, trainer.device):
        figures = evaluate(run, loader)

    bad = sum(world.gather_objects(int(run.bad)))
    if bad and not math.isfinite(figures["loss"]):
        images = f"{bad} of the {loader.num_images} {trainer.split} images"
        raise NonFiniteError(
            f"the teacher {_name(trainer, number)} returns logits that are NaN or infinite for "
            f"{images}; give a teacher that was trained without diverging, or set SOLVER.AMP off"
        )
    return figures


class _Run:
    """Runs a teacher, shows the progress, and counts its faults.

    Args:
        teacher: in eval mode.
        num_batches: of the pass.
        show: called with the progress before each batch.
    """

    def __init__(self, teacher: nn.Module, num_batches: int, show: Say) -> None:
        self.teacher = teacher
        self.num_batches = num_batches
        self.show = show
        self.done = 0
        self.bad: Tensor | int = 0
        """Images whose logits are not finite, although the image is."""

    def __call__(self, image: Tensor) -> Tensor:
        """Logits (N,C) of images (N,3,H,W)."""
        self.show(f"teacher check {self.done}/{self.num_batches}")
        self.done += 1

        logits: Tensor = self.teacher(image)[0]
        is_usable = image.flatten(1).isfinite().all(1)
        self.bad += (is_usable & ~logits.isfinite().all(1)).sum()
        return logits


def _loader(trainer: "Trainer") -> Loader:
    """The images that choose the best epoch."""
    loader: Loader = getattr(trainer.data, trainer.split)
    return loader


def _name(trainer: "Trainer", number: int) -> str:
    """The teacher's name as the user gave it."""
    names = trainer.cfg.DISTILLER.TEACHER
    return names if isinstance(names, str) else names[number]
