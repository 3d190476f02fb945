"""Writing a table or a page to a file."""

from pathlib import Path

from edkd.errors import UserError, reason_of
from edkd.whole_files import replace_file


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically: a failure leaves the old file.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {reason_of(error)}; choose another --output"
        ) from None
