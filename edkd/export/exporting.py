"""From a trained student to checked files and a model card: what `edkd export` calls."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from edkd.dataset import DataSet
from edkd.engine.checkpoint import save_bytes, save_text
from edkd.engine.evaluate import evaluate
from edkd.engine.saved_run import WEIGHTS, Request
from edkd.errors import StorageError, UserError, warn
from edkd.export.card import Exported, Quantized, card
from edkd.export.formats import FORMATS
from edkd.export.images import image_files, prepared, random_images, spread
from edkd.export.int8 import quantized
from edkd.export.sessions import no_grad, onnx_packages, open_onnx
from edkd.export.source import Completed, Source, open_source
from edkd.export.verify import compare, refuse_disagreement
from edkd.types import InputSpec

CHECKED = 500
"""Images on which a file is compared with its checkpoint."""

_RANDOM = 64
_BATCH = 32

Say = Callable[[str], None]
"""Takes a line for the user."""


class Options(NamedTuple):
    """How a network is exported."""

    to: str
    """A key of FORMATS."""
    calibrate: int
    """Images that decide the ranges of INT8."""
    out: str = ""
    """File or folder; "": beside the checkpoint."""
    int8: bool = False
    images: Sequence[str] = ()
    """Files and folders for the comparison; empty: the test set."""
    force: bool = False
    """Whether files that exist are replaced."""


class _Targets(NamedTuple):
    """The files that are written."""

    main: Path
    int8: Path
    card: Path


def export(request: Request, options: Options, complete: Completed, say: Say) -> None:
    """Write a student in another format, after comparing it with its checkpoint; and its card.

    Args:
        complete: adds what the user gives about the preparation of images.
        say: is called for each file.

    Raises:
        UserError: the network or the images cannot be read, a package is missing, a file exists
            already, or the exported network differs from the checkpoint.
        StorageError: a file could not be written.
    """
    if options.to == "onnx":
        onnx_packages()
    files = image_files(options.images)
    source = open_source(request, complete, needs_data=options.int8 or not files)
    if options.int8:
        _check_calibration(source)
    targets = _targets(source, options)

    # Make the file and compare it, in memory.
    form = FORMATS[options.to]
    content = form.write(source)
    batches, what = _images(source, files)
    agreement = compare(form.read(content, source), no_grad(source.network), batches)
    refuse_disagreement(agreement, what)
    small = _int8(source, content, options.calibrate) if options.int8 else None

    # Write.
    about = Exported(targets.main, options.to, len(content), agreement, what)
    save_bytes(content, targets.main)
    say(f"{targets.main}: {len(content) / 1e6:.2f} MB; {what}: {agreement}")
    if small is not None:
        save_bytes(small.content, targets.int8)
        say(f"{targets.int8}: {small}")
    save_text(card(source, about, small), targets.card)
    say(f"{targets.card}: model card")


# Where the files go.


def _targets(source: Source, options: Options) -> _Targets:
    """The paths of the files; raises where they must not or cannot be written."""
    suffix = FORMATS[options.to].suffix
    out = Path(os.path.expanduser(options.out)) if options.out else source.file.parent
    if out.is_dir():
        out = out / f"{_stem(source.file)}{suffix}"
    if out.suffix != suffix:
        raise UserError(f"--out {options.out}: the name must end in {suffix} for --to {options.to}")

    folder = out.parent
    if not folder.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {folder}; create it")
    if not os.access(folder, os.W_OK):
        raise StorageError(f"the folder {folder} cannot be written; give another with --out")

    targets = _Targets(out, out.with_suffix(".int8.onnx"), out.with_name(f"{out.name}.card.md"))
    written = targets if options.int8 else (targets.main, targets.card)
    existing = [path for path in written if os.path.lexists(path)]
    if existing and not options.force:
        raise UserError(
            f"{existing[0]} exists already; replace it with --force, or give another file with "
            "--out"
        )
    return targets


def _stem(file: Path) -> str:
    """A file's name without the extension of weights."""
    return file.stem if file.suffix.lower() in WEIGHTS else file.name


# Images.


def _images(source: Source, files: Sequence[str]) -> tuple[Iterator[Tensor], str]:
    """The images of the comparison, and what they are."""
    if files:
        return _given(files[:CHECKED], source.input), "given images"
    if source.data is not None:
        found = spread(source.data.test, CHECKED)
        return map(source.own_images, found), f"test images of {source.facts.dataset}"

    why = f", because the test set cannot be read ({source.unreachable})"
    return random_images(source.input, _RANDOM), f"random images{why}"


def _given(files: Sequence[str], spec: InputSpec) -> Iterator[Tensor]:
    """Batches of image files; a warning names those that cannot be read.

    Raises:
        UserError: none can be read.
    """
    bad = []
    for batch in prepared(files, spec, _BATCH):
        bad += batch.bad
        if batch.paths:
            yield batch.image

    if len(bad) == len(files):
        raise UserError(f"--check: cannot read the image {bad[0]}; give images that can be read")
    for image in bad:
        warn(f"cannot read the image {image}; it is skipped")


# INT8.


def _check_calibration(source: Source) -> None:
    if source.data is None:
        raise UserError(
            "--int8 needs the images of the data set, to calibrate and to measure accuracy "
            f"({source.unreachable}); give its folder with --root"
        )


def _int8(source: Source, content: bytes, number: int) -> Quantized:
    """The graph in INT8, and its accuracy on the test set beside that in float32."""
    data = source.data
    assert data is not None
    result = quantized(content, map(source.own_images, _calibration(data, number)))
    accuracies = [_accuracy(source, data, graph) for graph in (content, result)]
    return Quantized(
        content=result,
        megabytes_before=len(content) / 1e6,
        accuracy_before=accuracies[0],
        accuracy=accuracies[1],
        images=data.test.num_images,
    )


def _accuracy(source: Source, data: DataSet, graph: bytes) -> float:
    """Top-1 of a graph in percent on the test set."""
    classify = open_onnx(graph).classify
    return evaluate(lambda image: classify(source.own_images(image)), data.test)["top1"]


def _calibration(data: DataSet, number: int) -> Iterator[Tensor]:
    """Images for the ranges of INT8: those held out for choosing the epoch, else training ones."""
    held_out = spread(data.val, number) if data.val else iter(())
    missing = max(0, number - (data.val.num_images if data.val else 0))
    return chain(held_out, spread(data.train, missing) if missing else ())
