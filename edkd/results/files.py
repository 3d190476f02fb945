"""Writing a table or a page to a file."""

from pathlib import Path

from edkd.errors import UserError, reason_of
from edkd.whole_files import replace_file


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically: a failure leaves the old file.

    What UTF-8 does not have, as a byte of a folder's name that is no text, is written as an escape.

    Raises:
        UserError: the file cannot be written.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give --output the name of a file")

    try:
        replace_file(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {reason_of(error)}; choose another --output"
        ) from None
