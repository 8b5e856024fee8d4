"""List cursors: opaque text around the sequence number of the last job that was looked at."""

import base64
import binascii

from .store_errors import bad_cursor


def encode_cursor(sequence: int) -> str:
    """The text that a page's `next_cursor` carries."""
    return base64.urlsafe_b64encode(b"job:%d" % sequence).decode()


def decode_cursor(cursor: str) -> int:
    """The sequence number in `cursor`; BadInputError where it holds none."""
    try:
        kind, _, number = base64.urlsafe_b64decode(cursor).partition(b":")
        if kind == b"job" and number.isdigit():
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise bad_cursor(cursor)
