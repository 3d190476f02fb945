"""The keys and values of a command line, which are written `KEY VALUE` or `KEY=VALUE`."""

from collections.abc import Sequence

from edkd.errors import UserError

Pair = tuple[str, str]
"""A key and the text of its value."""

_WAY = "write KEY VALUE or KEY=VALUE"


def pairs(opts: Sequence[str]) -> list[Pair]:
    """The keys and values of a command line.

    Args:
        opts: its words, as ["SOLVER.LR", "0.1", "SOLVER.EPOCHS=3"]; Python code may give numbers.

    Raises:
        UserError: a key has no value, or another word stands in the place of a key, as the name of
            a YAML file.
    """
    found: list[Pair] = []
    words = [str(word) for word in opts]

    while words:
        word = words.pop(0)
        key, sign, value = word.partition("=")
        if not sign:
            _check_key(word, words, found)
            value = words.pop(0)
        _check_pair(key, value, words)
        found.append((key, value))
    return found


def _check_pair(key: str, value: str, following: Sequence[str]) -> None:
    """Refuse a pair that blanks, or the lack of quotes, have torn apart."""
    if not key.strip():
        raise UserError(f"the value {value!r} has no key; {_WAY}")
    if key != key.strip():
        raise UserError(f"blanks around the key {key.strip()!r}; write {key.strip()}=VALUE without")

    if value.startswith("[") and "]" not in value and any("]" in word for word in following):
        raise UserError(
            f"the list of {key} is in several words; put it in quotes, as {key} '[1, 2]'"
        )


def _check_key(word: str, following: Sequence[str], before: Sequence[Pair]) -> None:
    """Refuse a word that stands in the place of a key and is none, or that has no value.

    Args:
        word: in the place of a key.
        following: the words after it.
        before: the pairs before it.
    """
    problem = ""
    if word.endswith((".yaml", ".yml")):
        problem = f"{word} is not a key; for a YAML file write --cfg {word}"
    elif "/" in word:
        problem = f"{word} is not a key; for a YAML file write --cfg FILE"
    elif not following:
        problem = _last_word(word, before)
    elif following[0] in ("=", ":"):
        value = " ".join(following[1:2]) or "VALUE"
        problem = f"the key {word!r} has no value; write {word}={value} without blanks"

    if problem:
        raise UserError(problem)


def _last_word(word: str, before: Sequence[Pair]) -> str:
    """What is wrong with a last word that has no value."""
    name, colon, value = word.partition(":")
    if colon:
        return f"the key {word!r} has no value; write {name}={value or 'VALUE'}"

    if before:
        key, text = before[-1]
        if not text:  # as in SOLVER.LR= 0.1
            return f"the word {word!r} is not a key; write {key}={word} without blanks"
    return f"the key {word!r} has no value; {_WAY}"
