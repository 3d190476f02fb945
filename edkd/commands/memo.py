"""The command memo."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from edkd.commands._command_line import ArgumentParser, given_path
from edkd.engine.memo.admin import delete_memo, find_memos, survey
from edkd.engine.memo.files import stored_files
from edkd.errors import UserError
from edkd.invocation import command

DESCRIPTION = """List, verify or delete cached teacher outputs.

list     a line for each teacher cache: teacher, data set, share of the logits, size; and a line
         for each stored accuracy of a teacher
verify   the same, and compare the checksum of each file
delete   delete the named caches, or all of them with --all; the next run computes them again

examples:
  {memo} list
  {memo} verify --folder /data/teacher_memo
  {memo} delete cifar100_resnet56_0123456789abcdef
"""


FOLDER = Path("output/teacher_memo")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line; list, verify or delete."""
    parser = ArgumentParser(
        prog=command("memo"), description=DESCRIPTION.format(memo=command("memo"))
    )

    parser.add_argument("action", choices=("list", "verify", "delete"))
    parser.add_argument(
        "memos", nargs="*", metavar="MEMO", help="names, as printed by list (default: all)"
    )
    parser.add_argument("--all", action="store_true", help="delete all")
    parser.add_argument(
        "--folder",
        type=given_path,
        default=FOLDER,
        help="folder of the caches (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    _check(args)

    memos = find_memos(args.folder, args.memos)
    if not memos:
        print(f"no teacher caches in {args.folder}")
    elif args.action == "delete":
        _delete(memos)
    else:
        _list(memos, verify=args.action == "verify")


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not fit together, or a folder that is none."""

    # Which caches.
    if args.all and args.action != "delete":
        raise UserError(f"{args.action} has no --all: without names, it takes all caches")
    if args.all and args.memos:
        raise UserError(f"delete: give either {' '.join(args.memos)} or --all")
    if args.action == "delete" and not args.memos and not args.all:
        raise UserError(
            f"delete: give the names of caches, as printed by '{command('memo')} list', or --all"
        )

    # Where they are.
    if args.folder.exists() and not args.folder.is_dir():
        raise UserError(f"{args.folder} is a file; give the folder that holds the caches")
    if args.folder != FOLDER and not args.folder.exists():
        raise UserError(f"no folder {args.folder}; correct --folder")


def _delete(memos: Sequence[Path]) -> None:
    for folder in memos:
        delete_memo(folder)
        print(f"deleted {folder}")


def _list(memos: Sequence[Path], verify: bool) -> None:
    """Print a line for each cache; raise UserError if files are damaged."""
    damaged: list[Path] = []
    unknown: list[str] = []
    num_files = 0
    for folder in memos:
        try:
            found = survey(folder, verify)
        except UserError as error:  # the others are listed all the same
            unknown.append(str(error))
            continue
        print(found.line)
        damaged += found.damaged
        num_files += len(stored_files(folder))

    if unknown:
        raise UserError("; ".join(unknown))
    if damaged:
        intact = num_files - len(damaged)
        names = ", ".join(str(path) for path in damaged)
        raise UserError(
            f"damaged: {names}; {intact} of {num_files} files are intact; the next run that needs "
            "these logits computes them again, or delete the files"
        )
    if verify:
        noun = "file" if num_files == 1 else "files"
        print(f"all intact ({num_files} {noun})")
