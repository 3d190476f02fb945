"""The command list."""

import json
from collections.abc import Sequence

from edkd.commands._command_line import ArgumentParser
from edkd.commands._options import add_plugin
from edkd.errors import UserError
from edkd.invocation import command
from edkd.listing.cached import Record
from edkd.listing.kinds import KINDS, lines, matching

DESCRIPTION = """List what there is, one line each, with its source.

{kinds}

Only lines with all WORDs are listed; case is ignored.

examples:
  {list} methods
  {list} methods feature
  {list} models shuffle
  {list} configs resnet56 dkd
  {list} keys temperature
  {list} datasets --json
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and print."""
    kinds = "\n".join(f"{name:9} {kind.help}" for name, kind in KINDS.items())
    parser = ArgumentParser(
        prog=command("list"),
        description=DESCRIPTION.format(list=command("list"), kinds=kinds),
    )
    parser.add_argument("kind", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("words", nargs="*", metavar="WORD", help="words of a line (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON, one object for each line")
    add_plugin(parser, "as in the command train")
    args = parser.parse_intermixed_args(argv)

    kind = KINDS[args.kind]
    records = matching(kind.read(args.plugin), args.words)
    if args.json:
        print(json.dumps(records, indent=1))
        return
    if not records:
        raise UserError(_absent(args.kind, args.words))

    # Libraries have more than a thousand models.
    own = records if args.words else [record for record in records if not record.get("library")]
    print("\n".join(lines(own, kind.columns)))
    _print_rest(records[len(own) :])


def _absent(kind: str, words: Sequence[str]) -> str:
    """Why there is nothing to list, and what to do."""
    if words:
        return f"no {kind} with {' and '.join(words)}; give fewer words"
    return f"no {kind} are installed; a checkout of the project has them in its folder configs"


def _print_rest(records: Sequence[Record]) -> None:
    """Print how many models of libraries are not listed."""
    if not records:
        return
    names = list(dict.fromkeys(record["library"] for record in records))
    print(
        f"\nand {len(records)} models of {' and '.join(names)}; a WORD such as {names[0]} or "
        "mobilenet lists them"
    )
