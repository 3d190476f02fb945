"""Strict YAML: values mean what they look like, and mistakes are one line."""

import pytest

from edkd.engine.config.scalars import Scalar, plain, shown
from edkd.engine.config.strict_yaml import NotYaml, parse, read_chain
from edkd.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b101", 5),
        ("1_000", 1000),
        ("1e-4", 1e-4),
        ("1.5e5", 1.5e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("-.inf", -float("inf")),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("2020-01-31", "2020-01-31"),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("!!int '010'", 10),
        ("[1, [a, no]]", [1, ["a", False]]),
    ],
)
def test_values(text, value):
    result = plain(parse(f"a: {text}")["a"])
    assert result == value
    assert type(result) is type(value)


def test_a_scalar_keeps_its_text():
    content = parse("{a: no, b: 007, c: 1.10, d: 12:30, e: 2020-01-31, f: '007', g: 0x10}")
    assert [scalar.text for scalar in content.values()] == [
        "no",
        "007",
        "1.10",
        "12:30",
        "2020-01-31",
        "007",
        "0x10",
    ]


def test_a_number_too_large_to_compute_with_stays_text():
    for text in ("1" + 5000 * "0", "0x" + 5000 * "f"):
        assert parse(text) == Scalar(text, text)
    assert parse("0" * 5000 + "7").value == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "the key a is written twice.*line 2"),
        ("{<<: {a: 1}, <<: {a: 2}}", "the key a comes from two merges with different values"),
        ("? [a]\n: 2\n", "a key is not a single word"),
        ("a: !!int abc", "'abc' is not a value of type int"),
        ("a: !!bool 3", "'3' is not a value of type bool"),
        ("a: !!set {b}", "tag .*set is not allowed"),
        ("a: !!binary aGk=", "tag .*binary is not allowed"),
        ("a: !!python/object/apply:os.system ['true']", "tag .*python.* is not allowed"),
        ("&a [*a]", "an anchor contains itself"),
        ("{<<: 3}", "<< needs a group of keys"),
        ("a: *b", "undefined alias"),
        ("a: 1\n---\nb: 2\n", "single document"),
        ("a: [", "expected the node content"),
        ("[" * 5000, "recursion"),
        ("\0", "special characters"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(NotYaml, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_merges():
    content = parse(
        """
        base: &base {a: 1, b: 2}
        other: &other {b: 3, c: 4}
        first: {<<: *base, b: 5}
        second: {b: 6, <<: *base}
        both: {<<: [*base, *other]}
        again: {<<: *base}
        """
    )
    values = plain(content)
    assert values["first"] == {"a": 1, "b": 5}
    assert values["second"] == {"a": 1, "b": 6}
    assert values["both"] == {"a": 1, "b": 2, "c": 4}
    assert values["again"] == values["base"] == {"a": 1, "b": 2}


def test_a_merged_mapping_may_itself_merge():
    text = "x: &x {a: 1}\ny: &y {<<: *x, b: 2}\nz: {<<: *y, a: 3}\nagain: {<<: *y}\n"
    assert plain(parse(text))["z"] == {"a": 3, "b": 2}
    assert plain(parse(text))["again"] == {"a": 1, "b": 2}


def test_a_few_lines_cannot_stand_for_a_billion_values():
    lines = ["x0: &x0 [1]"]
    lines += [f"x{i}: &x{i} [{', '.join(9 * [f'*x{i - 1}'])}]" for i in range(1, 30)]
    content = parse("\n".join(lines))
    assert len(shown(content)) <= 400
    assert plain(content)["x1"] == 9 * [[1]]


def chain(tmp_path, **texts):
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return read_chain(str(tmp_path / "a.yaml"))


def test_a_file_is_based_on_others(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.yaml").write_text("x: 1\n")
    found = chain(tmp_path, a="_BASE_: b.yaml\nx: 3\n", b="_BASE_: below/c.yaml\nx: 2\n")
    assert [plain(content) for _, content in found] == [{"x": 1}, {"x": 2}, {"x": 3}]
    assert [name.rsplit("/", 1)[1] for name, _ in found] == ["c.yaml", "b.yaml", "a.yaml"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": "_BASE_: a.yaml"}, "a.yaml: _BASE_ a.yaml: the file is based on itself"),
        ({"a": "_BASE_: b.yaml", "b": "_BASE_: a.yaml"}, "b.yaml: _BASE_ a.yaml: .* itself"),
        (
            {"a": "_BASE_: bb.yaml", "b": ""},
            "_BASE_ bb.yaml: no such file, did you mean '.*b.yaml'",
        ),
        ({"a": "_BASE_: b.yaml", "b": "x: ["}, "a.yaml: _BASE_ b.yaml: not valid YAML"),
        ({"a": "_BASE_: b.txt"}, "_BASE_ b.txt: a configuration is a .yaml file"),
        ({"a": "_BASE_: [b.yaml]"}, r"must be the name of one YAML file, not \['b.yaml'\]"),
        ({"a": "_BASE_:"}, "must be the name of one YAML file"),
        ({"a": "- x"}, r"contains \['x'\] instead of KEY: VALUE lines"),
    ],
)
def test_bad_chains_are_named(tmp_path, texts, message):
    with pytest.raises(UserError, match=message) as caught:
        chain(tmp_path, **texts)
    assert "\n" not in str(caught.value)
