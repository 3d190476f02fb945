"""Protocols: what counts as one, their names, and published figures."""

import re
from pathlib import Path

import pytest
import yaml

from edkd.distillers import METHODS
from edkd.engine.config.table import defaults, table
from edkd.keys import Key
from edkd.results.names import ALONE, method_of
from edkd.results.protocol import PLAIN, protocol_of
from edkd.results.published import code_of, protocols, published
from tests.results.conftest import P240
from tests.runs import CHECKOUT

HEADERS = sorted((CHECKOUT / "configs").glob("*/*/*.yaml"))
WITH_FIGURE = re.compile(r"^# Published top-1: (\d+\.\d+)(.*)$", re.MULTILINE)


def test_the_defaults_are_those_of_the_configuration():
    known = defaults(table())
    own = {key: value for key, value in PLAIN.items() if key != "DATASET.TYPE"}
    assert own == {key: known[key] for key in own}


def code(student="resnet20", **settings):
    return code_of(protocol_of(P240 | {f"SOLVER.{k}": v for k, v in settings.items()}), student)


def test_published_protocols_are_recognised():
    assert code() == "P240"
    assert code("ShuffleV2", LR=0.01) == "P240"
    assert code(EPOCHS=480, LR=0.025) == "P480"
    assert code("ShuffleV1", EPOCHS=960, LR=0.01) == "P480"
    assert code(LR=0.1) == "PSKD"
    assert code(LR=0.1, BATCH_SIZE=128) == "PReview"
    assert code(LR=0.1, BATCH_SIZE=128, NESTEROV=True) == "PND"


@pytest.mark.parametrize(
    "settings",
    [
        {"LR": 0.01},
        {"EPOCHS": 12},
        {"MIXUP": 0.2},
        {"LR_DECAY_STAGES": [150, 180]},
        {"WEIGHT_DECAY": 0.0001},
        {"NESTEROV": True},
    ],
)
def test_a_changed_protocol_is_not_recognised(settings):
    assert code(**settings) == ""


def test_held_out_images_are_another_protocol():
    held_out = protocol_of(P240 | {"DATASET.VAL_SPLIT": 0.1})
    assert code_of(held_out, "resnet20") == ""
    assert "DATASET.VAL_SPLIT 0.1" in held_out.describe()


def test_a_limited_number_of_views_is_another_protocol():
    limited = protocol_of(P240 | {"DATASET.VIEWS": 50})
    assert code_of(limited, "resnet20") == ""
    assert "DATASET.VIEWS 50" in limited.describe()


def test_a_light_student_has_its_own_learning_rate():
    assert code("MobileNetV2", LR=0.05) == ""


def test_what_belongs_to_the_method_or_the_computer_does_not_count():
    own = {
        "SOLVER.TRAINER": "dot",
        "SOLVER.DOT.DELTA": 0.09,
        "SOLVER.LABEL_SMOOTHING": 0.1,
        "SOLVER.AMP": "off",
        "SOLVER.CUDA_GRAPH": True,
        "DATASET.NUM_WORKERS": 2,
        "TEACHER_MEMO.ENABLED": False,
        "DISTILLER.LSKD": True,
        "KD.TEMPERATURE": 2.0,
    }
    assert protocol_of(P240 | own).differences(protocol_of(P240)) == []


def test_initial_weights_count_and_their_file_does_not():
    """Each seed may have a file of its own; new, pretrained and given weights are different."""
    key = "DISTILLER.STUDENT_CKPT"
    values = [{}, {key: "pretrained"}, {key: "a/1"}, {key: "a/2"}, {key: ["a/3", "a/4"]}]
    new, pretrained, first, second, both = (protocol_of(P240 | each) for each in values)
    assert protocol_of(P240 | {key: ""}).differences(new) == []
    assert first.differences(second) == first.differences(both) == []
    for other in (pretrained, first):
        assert other.differences(new) == [key]
        assert code_of(other, "resnet20") == ""
    assert first.differences(pretrained) == [key]
    assert first.describe().endswith("DISTILLER.STUDENT_CKPT given")


def test_what_has_no_effect_does_not_count():
    idle = {
        "SOLVER.BETAS": [0.5, 0.5],
        "SOLVER.MIX_PROB": 0.5,
        "DATASET.SPLIT_SEED": 7,
        "SOLVER.LR_DECAY_STAGES": [150, 180, 210, 300],
    }
    assert protocol_of(P240 | idle).differences(protocol_of(P240)) == []


def test_differences_are_named():
    ours = protocol_of(P240)
    other = protocol_of(P240 | {"SOLVER.EPOCHS": 12, "DATASET.RANDOM_ERASING": 0.25})
    found = set(ours.differences(other))
    assert found == {"SOLVER.EPOCHS", "DATASET.RANDOM_ERASING", "SOLVER.LR_DECAY_STAGES"}


def test_a_key_that_a_run_of_an_older_version_lacks():
    """A known key had its default; an unknown one does not count."""
    old, new = protocol_of(P240), protocol_of(P240 | {"SOLVER.NEW": 1, "SOLVER.MIXUP": 0.2})
    assert old.differences(new) == ["SOLVER.MIXUP"]
    assert protocol_of(P240 | {"SOLVER.NEW": 2}).differences(new) == ["SOLVER.MIXUP", "SOLVER.NEW"]


def test_descriptions():
    short = {"SOLVER.EPOCHS": 12, "SOLVER.LR_DECAY_STAGES": [7, 9, 11]}
    text = protocol_of(P240 | short).describe()
    assert text == ("12 epochs, batch 64, SGD, lr 0.05 x0.1 after 7, 9, 11, weight decay 0.0005")
    cosine = {"SOLVER.SCHEDULE": "cosine", "SOLVER.MIXUP": 0.2}
    text = protocol_of(P240 | cosine).describe()
    assert text.endswith("lr 0.05 cosine, weight decay 0.0005, SOLVER.MIXUP 0.2")
    assert "lr 0.05 constant" in protocol_of(P240 | {"SOLVER.EPOCHS": 12}).describe()


# Published figures.


def test_figures_of_a_cell():
    """All sources of a cell are kept, in the order of the file."""
    figures = published("cifar100", "resnet32x4 -> resnet8x4", "KD")
    found = {(figure.value, figure.protocol): figure for figure in figures}
    assert set(found) == {(73.33, "P240"), (74.42, "PSim"), (74.75, "PSKD")}
    assert found[73.33, "P240"].deviation == 0.25
    assert found[73.33, "P240"].fits("P240")
    assert found[74.42, "PSim"].fits("P240"), "PSim has the same training"
    assert not found[74.75, "PSKD"].fits("P240")
    assert not found[73.33, "P240"].fits("")


def test_edkd_was_published_in_its_reference_form():
    figures = published("cifar100", "vgg13 -> MobileNetV2", "EDKD (reference)")
    assert [figure.value for figure in figures] == [69.83]
    assert published("cifar100", "vgg13 -> MobileNetV2", "EDKD (paper)") == []


def test_every_figure_is_plausible_and_has_a_known_protocol():
    content = yaml.safe_load((CHECKOUT / "edkd/results/published.yaml").read_text())
    assert len(content["tables"]) > 90
    for entry in content["tables"]:
        assert entry["protocol"] in protocols(), entry["source"]
        for value in entry["figures"].values():
            top1, *deviation = value if isinstance(value, list) else [value]
            assert 50 < top1 < 90
            assert all(0 < each < 1 for each in deviation)


def test_the_document_has_all_protocols():
    text = (CHECKOUT / "docs/tables.md").read_text()
    for code, about in protocols().items():
        if code != "not stated":
            assert f"| {code} | {about['about']} |" in text

    content = yaml.safe_load((CHECKOUT / "edkd/results/published.yaml").read_text())
    number = sum(len(entry["figures"]) for entry in content["tables"])
    assert f"has {number} figures" in text


def label_and_pair(file: Path, remark: str) -> tuple[str, str]:
    """The label of a shipped configuration, and its pair; from the file alone, which is fast."""
    content = yaml.safe_load(file.read_text())
    distiller, solver = content["DISTILLER"], content.get("SOLVER", {})
    settings = {f"DISTILLER.{key}": value for key, value in distiller.items()}
    settings |= {f"SOLVER.{key}": value for key, value in solver.items()}

    for group in distiller["TYPE"].split("+"):
        for name in ("FORM", "BASE"):
            key = METHODS[group].defaults.get(name)
            default = key.default if isinstance(key, Key) else key
            given = content.get(group, {}).get(name, default)
            # A header may state the form that was published instead.
            stated = re.search(rf"{group}\.{name} (\w+)", remark)
            settings[f"{group}.{name}"] = stated.group(1) if stated else given

    label = method_of(settings, {})
    is_alone = label.startswith(ALONE)
    teacher = "" if is_alone else f"{distiller['TEACHER']} -> "
    return label, f"{teacher}{distiller['STUDENT']}"


def test_the_headers_of_the_configurations_have_the_same_figures():
    checked = 0
    for file in HEADERS:
        found = WITH_FIGURE.search(file.read_text())
        dataset = file.relative_to(CHECKOUT / "configs").parts[0]
        if found is None:
            continue

        label, pair = label_and_pair(file, found.group(2))
        figures = [figure.value for figure in published(dataset, pair, label)]
        assert float(found.group(1)) in figures, (file, label, pair, figures)
        checked += 1
    assert checked > 370
