"""Shell functions that complete words of edkd, for the scripts that shtab writes."""

from collections.abc import Iterable, Mapping
from typing import Any

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

_BASH_CASE = '    {key}) compgen -W "{words}" -- "$1" ;;'

_ZSH_PAIRS = """
_edkd_pairs() {{
  local -a found
  case "${{words[CURRENT-1]}}" in
{cases}
    *) found=({keys}); compadd -a found; _files -/ ;;
  esac
}}
"""

_ZSH_CASE = "    {key}) found=({words}); compadd -a found ;;"

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

_FISH_CASE = "    case {key}\n      string split ' ' -- '{words}'"


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


def completes_pairs(keys: Iterable[str], values: Mapping[str, Iterable[str]]) -> Completion:
    """Completes KEY VALUE pairs: after a key with known values, one of these; else a key.

    Args:
        keys: configuration keys.
        values: of some of them.
    """
    joined = " ".join(plain(keys))
    texts = {
        "bash": (_BASH_PAIRS, _BASH_CASE),
        "zsh": (_ZSH_PAIRS, _ZSH_CASE),
        "fish": (_FISH_PAIRS, _FISH_CASE),
    }
    preamble = {}
    for shell, (text, case) in texts.items():
        cases = [
            case.format(key=key, words=" ".join(plain(words))) for key, words in values.items()
        ]
        preamble[shell] = text.format(cases="\n".join(cases), keys=joined)
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
