"""Reports on values of configurations: numbers, text, merges, paths, and hints."""

import pytest

from edkd.engine.config.compare import flatten
from edkd.engine.config.load import load_config
from edkd.errors import UserError
from edkd.registry import METHODS
from tests.runs import assert_refused


def written(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def both(tmp_path, key, text):
    """The value of a key that a YAML file has, and that the command line has."""
    group, name = key.split(".")
    file = written(tmp_path, f"{group}:\n  {name}: {text}\n")
    return [dict(flatten(cfg))[key] for cfg in (load_config(file), load_config(opts=[key, text]))]


INTEGERS = [
    ("010", 10),
    ("064", 64),
    ("08", 8),
    ("+5", 5),
    ("00", 0),
    ("1_000", 1000),
    ("0o10", 8),
    ("0x10", 16),
    ("0b11", 3),
    (" 5 ", 5),
]


@pytest.mark.parametrize(("text", "number"), INTEGERS)
def test_a_leading_zero_means_nothing(tmp_path, text, number):
    """kynema/kynema-ugf#584: `max_iterations: 0010` became 8, the value in octal.

    Right: 10, as written; octal has to be written 0o10.
    """
    assert both(tmp_path, "SOLVER.SEED", text) == [number, number]
    assert both(tmp_path, "SOLVER.LR_DECAY_STAGES", f"[{text}]") == [[number], [number]]


@pytest.mark.parametrize(
    "text",
    [
        "1:30",
        "1:30:00",
        "1__0",
        "1_",
        "_1",
        "1,000",
        "0b12",
        "0o8",
        "\u0663",
        "\uff15",
        "\u00b2",
        "1 000",
        "5k",
    ],
)
def test_what_is_no_decimal_number_is_refused(tmp_path, text):
    """yaml/pyyaml#395: `a: 1:10` is read as 70, in base 60. Right: an error, in one line."""
    for key in ("SOLVER.SEED", "SOLVER.LR"):
        with pytest.raises(UserError, match=f"{key}.*write a number in decimal"):
            load_config(opts=[key, text])
        with pytest.raises(UserError, match=f"{key}.*write a number in decimal"):
            both(tmp_path, key, text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 1e-3), ("2E5", 2e5), (".5", 0.5), ("+.5", 0.5), ("5.", 5.0), ("1e+2", 100.0)],
)
def test_numbers_with_an_exponent(tmp_path, text, number):
    """rbgirshick/yacs#46: 1e-3 in a YAML file was text, since YAML 1.1 asks for a dot."""
    assert both(tmp_path, "SOLVER.LR", text) == [number, number]


def test_a_whole_number_with_an_exponent_says_how_to_write_it():
    """A kind of report: 1e3 epochs are refused without saying what to write."""
    with pytest.raises(UserError, match=r"SOLVER.EPOCHS .* is not of type int; write 1000$"):
        load_config(opts=["SOLVER.EPOCHS", "1e3"])


TEXTS = [
    *("no", "NO", "on", "y", "True", "007", "1.10", "12:30", "1e3", "0x10", "1_000", "null", "~"),
    *("2024-01-31", "2024-01-31 10:00:00", "=", "<<", ".inf", "+5", "None", "a:b", "1,000"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_as_it_is_written(tmp_path, text):
    """xkbcommon/libxkbcommon#268: `layout: no` was read as False. Right: the text "no"."""
    values = (
        both(tmp_path, "EXPERIMENT.TAG", text)
        if text != "="
        else [load_config(written(tmp_path, f"EXPERIMENT: {{TAG: {text}}}")).EXPERIMENT.TAG]
    )
    assert set(values) == {text}


def test_an_empty_place_is_empty_where_that_means_something(tmp_path):
    """A kind of report: `teacher_ckpt: null` becomes a file of that name."""
    for text in ("", "null", "~"):
        cfg = load_config(written(tmp_path, f"DISTILLER: {{TEACHER_CKPT: {text}}}\n"))
        assert cfg.DISTILLER.TEACHER_CKPT == ""


@pytest.mark.parametrize("text", ["[kd]", "{a: b}", "a: b", "@x", "%x", "- x"])
def test_text_that_needs_quotes(tmp_path, text):
    """A kind of report: a value with special characters is refused, and how to write it unsaid."""
    with pytest.raises(UserError, match="quotes"):
        load_config(written(tmp_path, f"EXPERIMENT:\n  TAG: {text}\n"))
    assert text == load_config(written(tmp_path, f"EXPERIMENT:\n  TAG: '{text}'\n")).EXPERIMENT.TAG


MERGES = [
    "DKD: &d\n  <<: &b {ALPHA: 0.5, T: 3.0}\n  ALPHA: 2.0\nEDKD: *d\n",
    "DKD: &d {ALPHA: 2.0, T: 3.0}\nEDKD:\n  <<: *d\nONE:\n  <<: {T: 3.0}\n",
    "DKD:\n  <<: &a {ALPHA: 2.0}\n  <<: &b {T: 3.0}\nEDKD:\n  <<: *a\n  <<: *b\n",
    "DKD: &d {ALPHA: 2.0, T: 3.0}\nEDKD:\n  <<: [*d, {T: 9.0}]\n  <<: *d\n",
]


@pytest.mark.parametrize("text", MERGES)
def test_a_group_is_merged_more_than_once(tmp_path, text):
    """adrienverge/yamllint#88: two merges into one group were refused as a duplicate key.

    Right: they are read where they do not contradict each other; so are chains of merges.
    """
    cfg = load_config(written(tmp_path, text))
    assert (cfg.DKD.ALPHA, cfg.DKD.T) == (cfg.EDKD.ALPHA, cfg.EDKD.T) == (2.0, 3.0)


@pytest.mark.parametrize(
    "text",
    [
        "DKD: {T: 1.0, T: 2.0}\n",
        "SOLVER:\n  LR: 1.0\nSOLVER.LR: 2.0\n",
        "DKD:\n  <<: {T: 1.0}\n  <<: {T: 2.0}\n",
    ],
)
def test_a_key_with_two_values_is_refused(tmp_path, text):
    """A kind of report: of two values of one key, the last one silently wins."""
    with pytest.raises(UserError, match="is written twice|comes from two merges"):
        load_config(written(tmp_path, text))


def test_files_of_windows_editors(tmp_path):
    """A kind of report: a byte order mark, or line ends of Windows, become part of a key."""
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbfSOLVER:\r\n  LR: 0.3\r\n  SEED: 007\r\n")
    solver = load_config(str(file)).SOLVER
    assert (solver.LR, solver.SEED) == (0.3, 7)


# Paths.


@pytest.mark.parametrize(
    "key", ["LOG.PREFIX", "DATASET.ROOT", "TEACHER_MEMO.FOLDER", "DISTILLER.TEACHER_CKPT"]
)
def test_variables_in_paths(tmp_path, monkeypatch, key):
    """gabrie30/ghorg#117: a path in a configuration file made a folder called $HOME.

    EOSIO/eos#2373: so did --option=~/folder, where no shell replaces the ~.
    """
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    for text, path in [
        ("$HOME/x", "/home/me/x"),
        ("${SCRATCH}/x/$HOME", "/scratch/x//home/me"),
        ("~/x", "/home/me/x"),
        ("x~/cash$", "x~/cash$"),
    ]:
        assert both(tmp_path, key, text) == [path, path]
        assert dict(flatten(load_config(opts=[f"{key}={text}"])))[key] == path


def test_variables_in_a_list_of_paths(tmp_path, monkeypatch):
    """Each of several teachers has a file of its own."""
    monkeypatch.setenv("HOME", "/home/me")
    found = both(tmp_path, "DISTILLER.TEACHER_CKPT", "[~/x, $HOME/y]")
    assert found == [["/home/me/x", "/home/me/y"]] * 2


@pytest.mark.parametrize("text", ["$NOT_SET/x", "${NOT_SET}/x", "$EMPTY/x"])
def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch, text):
    """A kind of report: with a variable unset, files go to /x."""
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv("EMPTY", "")
    message = r".*the environment variable (NOT_SET|EMPTY) is not set"
    with pytest.raises(UserError, match=f"LOG.PREFIX {message}"):
        both(tmp_path, "LOG.PREFIX", text)
    with pytest.raises(UserError, match=f"^--cfg is {message}"):
        load_config(f"{text}.yaml")


def test_a_folder_with_a_dollar_sign_is_kept(tmp_path, monkeypatch):
    """A path that exists as it is written is that path."""
    (tmp_path / "$OLD").mkdir()
    monkeypatch.delenv("OLD", raising=False)
    path = str(tmp_path / "$OLD")
    assert path == load_config(opts=["LOG.PREFIX", path]).LOG.PREFIX


def test_files_that_are_given_by_option(tmp_path, monkeypatch):
    """EOSIO/eos#2373: after a = no shell replaces the ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "_BASE_: ~/base.yaml\nSOLVER: {LR: 0.3}\n")
    (tmp_path / "base.yaml").write_text("SOLVER: {SEED: 7}\n")
    (tmp_path / "plugin.py").write_text("")
    solver = load_config("~/x.yaml", plugins=["~/plugin.py"]).SOLVER
    assert (solver.LR, solver.SEED) == (0.3, 7)


# Names.

FOREIGN = [
    (["DISTILLER.TYPE", "SEMCKD"], "known from SimKD"),
    (["DISTILLER.TYPE", "PKD"], "known from torchdistill"),
    (["DISTILLER.TYPE", "KD+PKD"], "PKD is known from torchdistill"),
    (["SEMCKD.WEIGHT", "1"], "known from SimKD"),
    (["SOLVER.LAYER_DECAY", "0.1"], "known from timm"),
    (["SOLVER.SMOOTHING", "0.1"], "use SOLVER.LABEL_SMOOTHING"),
    (["DATASET.COLOR_JITTER", "1"], "known from timm"),
    (["SOLVER.OPT", "SGD"], "use SOLVER.TYPE"),
]


@pytest.mark.parametrize(("opts", "message"), FOREIGN)
def test_names_of_other_systems_are_no_typing_errors(opts, message):
    """A kind of report: SEMCKD gets "did you mean EDKD?"."""
    with pytest.raises(UserError, match=message) as caught:
        load_config(opts=opts)
    assert "edkd does not have it" in str(caught.value)
    assert "did you mean" not in str(caught.value)


SYNONYMS = [
    (["DISTILLER.TYPE", "DOT"], "here it is SOLVER.TRAINER dot"),
    (["DISTILLER.TYPE", "LSKD"], "here it is DISTILLER.LSKD True"),
    (["DISTILLER.TYPE", "hint"], "here it is DISTILLER.TYPE FITNET"),
]


@pytest.mark.parametrize(("opts", "message"), SYNONYMS)
def test_other_names_for_what_is_here(opts, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(opts=opts)
    assert "did you mean" not in str(caught.value)


def test_names_of_other_systems_in_python():
    """The same through `edkd.distill(method="PKD")`."""
    with pytest.raises(UserError, match="PKD is known from torchdistill"):
        METHODS.find("PKD")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.DOT", "1"], r"SOLVER.DOT .*is a group of keys \(DELTA\)"),
        (["DKD.TEMPERATURE", "1"], "did you mean 'DKD.T'"),
        (["KD.T", "1"], "did you mean 'KD.TEMPERATURE'"),
        (["SOLVER.T", "1"], "unknown key SOLVER.T .*; known here"),
        (["SOLVER.WARMUP", "1"], "did you mean 'SOLVER.WARMUP_EPOCHS'"),
        (["WARMUP", "1"], "did you mean 'DKD.WARMUP' or 'EDKD.WARMUP' or .*'ONE.WARMUP'"),
    ],
)
def test_hints_are_close_in_meaning(opts, message):
    """A kind of report: the hint names a key of another group that has nothing to do with it."""
    with pytest.raises(UserError, match=message):
        load_config(opts=opts)


# The command line.


def test_without_arguments_there_is_usage_and_examples(tool):
    """A kind of report: a command without arguments begins hours of training."""
    done = tool("train")
    assert done.code == 2
    assert done.err == "edkd: error: nothing to train: give --cfg FILE, or KEY VALUE pairs\n"
    lines = done.out.splitlines()
    assert lines[0].startswith("usage: ")
    assert len([line for line in lines if "train.py --cfg configs/" in line]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("configs/x.yaml", "for a YAML file write --cfg configs/x.yaml"),
        ("configs/x.yaml SOLVER.EPOCHS=1", "for a YAML file write --cfg configs/x.yaml"),
        ("configs/x SOLVER.EPOCHS=1", "configs/x is not a key; for a YAML file write --cfg FILE"),
        ("SOLVER.EPOCHS = 1", "write SOLVER.EPOCHS=1 without blanks"),
        ("SOLVER.EPOCHS= 1", "write SOLVER.EPOCHS=1 without blanks"),
        ("SOLVER.EPOCHS:1", "write SOLVER.EPOCHS=1"),
        ("SOLVER.EPOCHS: 1", "did you mean 'SOLVER.EPOCHS'"),
        ("--SOLVER.EPOCHS 1", "keys without dashes, such as SOLVER.LR 0.1"),
        ("--epochs 1", "keys without dashes, such as SOLVER.LR 0.1"),
        ("--config x.yaml", "give a YAML file as --cfg FILE"),
        ("--resme", "did you mean --resume"),
    ],
)
def test_ways_of_other_commands_to_give_keys(tool, words, message):
    """A kind of report: the message says that something is wrong, and not how to write it."""
    assert_refused(tool("train", *words.split()), message)


def test_both_forms_of_a_pair():
    """`SOLVER.EPOCHS=1` and `SOLVER.EPOCHS 1` mean the same."""
    first = load_config(opts=["SOLVER.EPOCHS=1"])
    assert first == load_config(opts=["SOLVER.EPOCHS", "1"])
