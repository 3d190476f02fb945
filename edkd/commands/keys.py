"""The command keys."""

from collections.abc import Mapping, Sequence

from edkd.commands._command_line import ArgumentParser
from edkd.commands._options import add_plugin
from edkd.invocation import command
from edkd.keys import Key
from edkd.signals import hold

DESCRIPTION = """Print the configuration keys: default, meaning, allowed values.

examples:
  {keys}
  {keys} SOLVER DKD.BETA
  {keys} --plugin my_method.py MYKD
  {keys} --markdown > docs/keys.md
"""

INTRODUCTION = """# Configuration keys

Each key has its default here. A YAML file changes it (`--cfg FILE`), and the command line changes
it again (`SOLVER.LR 0.1` or `SOLVER.LR=0.1`). Text keys keep the text as written; `null` is empty
where the default is `""`. Numbers are decimal, also with leading zeros; `0x10`, `0o10` and `0b10`
name another base. In paths, `~` and environment variables such as `$HOME` are replaced. A key
marked *resume* may have another value when a run continues with `--resume`; `SOLVER.EPOCHS` may not
under the cosine schedule, which ends with the last epoch. Of the groups that belong to a method, an
update rule, a data set or a model, only those in use have an effect.

This file is the output of `edkd keys --markdown`, and a test compares both.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and print."""
    parser = ArgumentParser(
        prog=command("keys"), description=DESCRIPTION.format(keys=command("keys"))
    )
    parser.add_argument(
        "prefixes",
        nargs="*",
        metavar="PREFIX",
        help="a group or a key, such as SOLVER (default: all)",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    add_plugin(parser, "as in the command train")
    args = parser.parse_args(argv)

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.engine.config.plugins import import_plugins
        from edkd.engine.config.table import help_text

    import_plugins(args.plugin)
    print(markdown(args.prefixes) if args.markdown else help_text(args.prefixes))


def markdown(prefixes: Sequence[str] = ()) -> str:
    """A section for each group, with a table of its keys."""
    from edkd.engine.config.table import select

    keys = select(prefixes)
    groups = list(dict.fromkeys(name.split(".")[0] for name in keys))
    sections = [_section(group, keys) for group in groups]
    return "\n".join([INTRODUCTION, *sections]).rstrip("\n")


def _section(group: str, keys: Mapping[str, Key]) -> str:
    from edkd.engine.config.table import allowed, shown_default

    lines = [f"## {group}", "", "| key | default | allowed | meaning |", "|---|---|---|---|"]
    for name, key in keys.items():
        if not name.startswith(f"{group}."):
            continue
        meaning = key.help
        if key.source:
            meaning += f" (default from {key.source})"
        if key.free_on_resume:
            meaning += " *(resume)*"
        default = shown_default(key)
        cells = [f"`{name}`", default, allowed(name, key), meaning]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join([*lines, ""])
