"""How a run is named in a table: its method with all switches, and its pair of networks."""

from collections.abc import Mapping, Sequence
from typing import Any

Values = Mapping[str, Any]
"""Settings by full keys, or the content of a file of a run."""

ALONE = "NONE"
"""The method of a student that is trained without a teacher."""

SEPARATOR = "+"
"""Between the methods of a combination."""

_ALL_METHODS_HAVE = ("", "base", "crd", "ours", "crld")
"""Names of the update rule that is no part of a method's name."""

_UPDATE_RULES = {
    "dot": "DOT",
    "crd_dot": "DOT",
    "deepkd": "DeepKD",
    "deepkd_aug": "DeepKD",
}
"""Names of the others in papers."""

_PRECISIONS = {
    "off": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}
"""What the values of SOLVER.AMP stand for; auto depends on the hardware."""


def method_of(settings: Values, result: Values) -> str:
    """The method with its switches: "KD", "KD+LSKD", "EDKD (reference)", "NONE (CE x 2)".

    Two runs with different values of a switch have different labels. The numbers of a method, such
    as its temperature, are not part of it.
    """
    method = str(result.get("method") or settings.get("DISTILLER.TYPE") or "unknown")
    parts = [method, *_additions(settings)]
    label = SEPARATOR.join(parts)

    # What is no part of a name in papers stands in brackets.
    remarks = _variants(method, settings)
    remarks += _controls(settings)
    remarks += _mutual(result)
    return f"{label} ({', '.join(remarks)})" if remarks else label


def shown(method: str) -> str:
    """A label of `method_of` for readers: "student alone (CE x 2)" for "NONE (CE x 2)"."""
    if method.split(" ")[0] == ALONE:
        return f"student alone{method.removeprefix(ALONE)}"
    return method


def students_of(settings: Values, result: Values) -> list[str]:
    """The architectures of the students."""
    return _listed(result.get("student") or settings.get("DISTILLER.STUDENT"))


def teachers_of(settings: Values, result: Values) -> list[str]:
    """The architectures of the teachers; empty for a run without one."""
    if "teacher" in result:
        return _listed(result["teacher"])

    # A run of an older version: only the student alone is known to have none.
    is_alone = settings.get("DISTILLER.TYPE", ALONE) == ALONE
    return [] if is_alone else _listed(settings.get("DISTILLER.TEACHER"))


def joined(names: Sequence[str]) -> str:
    """Architectures as text: "resnet20", "3 x resnet20", "resnet8 + resnet20"."""
    parts = []
    for name in dict.fromkeys(names):
        number = names.count(name)
        parts.append(f"{number} x {name}" if number > 1 else name)
    return " + ".join(parts)


def precision_of(settings: Values, environment: Values) -> str:
    """Precision of the forward passes: "float32", "bfloat16" or "float16"; "" where unknown."""
    known = environment.get("precision")
    if known:
        return str(known)

    mode = str(settings.get("SOLVER.AMP"))
    return _PRECISIONS.get(mode, "")


def _listed(names: Any) -> list[str]:
    """One name, or a list of names, as a list."""
    if isinstance(names, str):
        return [names] if names else []
    return [str(name) for name in names or []]


def _additions(settings: Values) -> list[str]:
    """What is added to a method: transforms of the logits, and the update rule."""
    added = []
    for name in ("LSKD", "EAKD"):
        if settings.get(f"DISTILLER.{name}"):
            added.append(name)

    rule = str(settings.get("SOLVER.TRAINER") or "")
    if rule not in _ALL_METHODS_HAVE:
        added.append(_UPDATE_RULES.get(rule, rule))
    return added


def _variants(method: str, settings: Values) -> list[str]:
    """The form or the base loss of a method that has several: "reference", "base dkd"."""
    groups = method.split(SEPARATOR)
    found = []
    for group in groups:
        prefix = f"{group} " if len(groups) > 1 else ""
        form = settings.get(f"{group}.FORM")
        base = settings.get(f"{group}.BASE")
        if form:
            found.append(f"{prefix}{form}")
        if base:
            found.append(f"{prefix}base {base}")
    return found


def _controls(settings: Values) -> list[str]:
    """What controls change: the weight of the labels, their smoothing, the teacher's outputs."""
    weight = settings.get(f"{ALONE}.CE_WEIGHT", 1)
    smoothing = settings.get("SOLVER.LABEL_SMOOTHING")
    found = []

    if weight != 1:
        found.append(f"CE x {weight}".removesuffix(".0"))
    if smoothing:
        found.append(f"label smoothing {smoothing}")
    if settings.get("DISTILLER.SHUFFLE_TEACHER"):
        found.append("teacher shuffled")
    return found


def _mutual(result: Values) -> list[str]:
    """The number of students that share a mean accuracy."""
    students = _listed(result.get("student"))
    return [f"mean of {len(students)} students"] if len(students) > 1 else []
