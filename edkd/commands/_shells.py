"""Shell functions that complete words of edkd, for the scripts that shtab writes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SHELLS = ("bash", "zsh", "fish")

Completion = dict[str, Any]
"""A value for the attribute `complete` of an action, see shtab."""

_BASH = """
_edkd_{name}() {{
  compgen -W "{words}" -- "$1"
}}
"""

_ZSH = """
_edkd_{name}() {{
  local -a found
  found=({words})
  compadd -a found
}}
"""

_FISH = """
function _edkd_{name}
  string split ' ' -- '{words}'
end
"""

_BASH_PAIRS = """
_edkd_pairs() {{
  case "${{COMP_WORDS[COMP_CWORD-1]}}" in
{cases}
    *) compgen -W "{keys}" -- "$1"; compgen -d -- "$1" ;;
  esac
}}
"""

_BASH_CASE = '    {keys}) compgen -W "{words}" -- "$1" ;;'

_BASH_CALL = '    {keys}) {function} "$1" ;;'

_ZSH_PAIRS = """
_edkd_pairs() {{
  local -a found
  case "${{words[CURRENT-1]}}" in
{cases}
    *) found=({keys}); compadd -a found; _files -/ ;;
  esac
}}
"""

_ZSH_CASE = "    {keys}) found=({words}); compadd -a found ;;"

_ZSH_CALL = "    {keys}) {function} ;;"

_FISH_PAIRS = """
function _edkd_pairs
  set -l before (commandline -opc)
  switch $before[-1]
{cases}
    case '*'
      string split ' ' -- '{keys}'
      __fish_complete_directories
  end
end
"""

_FISH_CASE = "    case {keys}\n      string split ' ' -- '{words}'"

_FISH_CALL = "    case {keys}\n      {function}"


class _Pairs(NamedTuple):
    """How a shell completes KEY VALUE pairs."""

    function: str
    case: str
    """After some keys: one of some words."""
    call: str
    """After some keys: what another function completes."""
    separator: str
    """Between the keys of a case."""


_PAIRS = {
    "bash": _Pairs(_BASH_PAIRS, _BASH_CASE, _BASH_CALL, "|"),
    "zsh": _Pairs(_ZSH_PAIRS, _ZSH_CASE, _ZSH_CALL, "|"),
    "fish": _Pairs(_FISH_PAIRS, _FISH_CASE, _FISH_CALL, " "),
}


def completes_words(name: str, words: Iterable[str]) -> Completion:
    """Completes one of some words, which stand in the script once.

    Args:
        name: of the shell function.
        words: without spaces and quotes.
    """
    joined = " ".join(plain(words))
    texts = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
    preamble = {shell: text.format(name=name, words=joined) for shell, text in texts.items()}
    return _calling(f"_edkd_{name}", preamble)


def completes_pairs(
    keys: Iterable[str],
    values: Mapping[str, Iterable[str]],
    calls: Mapping[str, Sequence[str]],
) -> Completion:
    """Completes KEY VALUE pairs: after a key with known values, one of these; else a key.

    Args:
        keys: configuration keys.
        values: of some of them.
        calls: names given to `completes_words`, and the keys that have such values.
    """
    alike: dict[str, list[str]] = {}
    for key, words in values.items():
        alike.setdefault(" ".join(plain(words)), []).append(key)

    preamble = {}
    for shell, form in _PAIRS.items():
        cases = [
            form.case.format(keys=form.separator.join(group), words=words)
            for words, group in alike.items()
        ]
        cases += [
            form.call.format(keys=form.separator.join(group), function=f"_edkd_{name}")
            for name, group in calls.items()
        ]
        text = form.function.format(cases="\n".join(cases), keys=" ".join(plain(keys)))
        preamble[shell] = text
    return _calling("_edkd_pairs", preamble)


def plain(words: Iterable[str]) -> list[str]:
    """The words that need no quotes in a shell; names of models and keys are such."""
    return [word for word in words if word and all(_is_plain(letter) for letter in word)]


def _is_plain(letter: str) -> bool:
    return letter.isalnum() or letter in "._-/+@"


def _calling(function: str, preamble: Mapping[str, str]) -> Completion:
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "preamble": preamble,
    }
