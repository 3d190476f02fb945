"""Teacher memos: python tools/memo.py list|verify|delete [MEMO ...] [--folder FOLDER]."""

from collections.abc import Sequence
from pathlib import Path

from edkd.errors import ArgumentParser, UserError, run_command
from edkd.stop import hold


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and do it to the memos that are named."""
    parser = ArgumentParser(description="What teachers have answered: list it, compare checksums, delete it.")
    parser.add_argument("action", choices=("list", "verify", "delete"))
    parser.add_argument("memos", nargs="*", metavar="MEMO", help="names, as 'list' prints them (default: all)")
    parser.add_argument("--all", action="store_true", help="delete all")
    parser.add_argument("--folder", type=Path, default=Path("output/teacher_memo"), help="default: %(default)s")
    args = parser.parse_args(argv)

    with hold():  # torch takes seconds to load, and must not be cut short by a signal
        from edkd.engine.teacher_memo import delete_memo, find_memos, survey

    memos = find_memos(args.folder, args.memos)
    if not memos:
        print(f"no memos in {args.folder}")
    if args.action == "delete":
        if not args.memos and not args.all:
            raise UserError("delete: name the memos, as 'list' prints them, or say --all")
        for folder in memos:
            delete_memo(folder)
            print(f"deleted {folder}")
        return
    damaged = []
    for folder in memos:
        line, bad = survey(folder, verify=args.action == "verify")
        print(line)
        damaged += bad
    if damaged:
        raise UserError(f"damaged: {', '.join(map(str, damaged))}; the next run that needs them asks the teacher again")


if __name__ == "__main__":
    run_command(main)
