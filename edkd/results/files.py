"""Writing a table or a page to a file."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from edkd.errors import UserError, reason_of


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically: a failure leaves the old file.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")

    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)

    except OSError as error:
        raise UserError(
            f"cannot write {path}: {reason_of(error)}; choose another --output"
        ) from None
    finally:
        with suppress(OSError):  # it is there only after a failure
            partial.unlink(missing_ok=True)
