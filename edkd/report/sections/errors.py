"""Which classes are confused, and the images with the most confident errors."""

from collections.abc import Sequence

from edkd.report.blocks import Block, Details, Image, Images, Note, Section
from edkd.report.findings import Findings, WrongImage, evaluated
from edkd.report.numbers import counted
from edkd.report.sections.classes import class_chart
from edkd.report.sections.matrix import confusion_table, matrix_chart

_LEAD = (
    "Test images with a wrong prediction. With several seeds, the first is shown; its rows of the "
    "matrix add up to the number of test images of each class."
)


def errors(findings: Sequence[Findings], notes: Sequence[Note]) -> Section:
    """Accuracy of each class for all rows; matrix, confusions and images of each row."""
    known = evaluated(findings)
    blocks: list[Block] = [*notes]
    blocks += [class_chart(group) for group in _of_same_classes(known)]
    for place, found in enumerate(known):
        blocks.append(_of_row(found, is_open=place == 0))
    return Section("errors", "Errors", _LEAD, blocks)


def _of_same_classes(findings: Sequence[Findings]) -> list[list[Findings]]:
    """Rows in groups: folders of images are one kind of data set, but have classes of their own."""
    groups: dict[tuple[str, ...], list[Findings]] = {}
    for found in findings:
        groups.setdefault(tuple(found.class_names), []).append(found)
    return list(groups.values())


def _of_row(found: Findings, is_open: bool) -> Details:
    run = found.runs[0]
    right = run.confusion.trace()
    wrong = counted(run.num_images - int(right), "error")
    images = counted(run.num_images, "image")
    title = f"{found.line.name}: {wrong} in {images}"

    blocks: list[Block] = [matrix_chart(found), confusion_table(found)]
    if found.images:
        blocks.append(_gallery(found))
    return Details(title, blocks, is_open, found.line.series)


def _gallery(found: Findings) -> Images:
    images = [_image(wrong) for wrong in found.images]
    return Images("Most confident errors: predicted class, confidence, true class", images)


def _image(wrong: WrongImage) -> Image:
    alt = (
        f"Test image {wrong.position}: true class {wrong.target}, predicted {wrong.predicted} with "
        f"{wrong.confidence:.1f} % confidence"
    )
    return Image(
        uri=wrong.uri,
        alt=alt,
        title=f"{wrong.predicted}, {wrong.confidence:.1f} %",
        detail=f"true: {wrong.target}",
        is_small=wrong.is_small,
    )
