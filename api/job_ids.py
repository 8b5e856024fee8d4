"""Job ids: sorted by time, and not to be guessed."""

import secrets
import time


def new_job_id() -> str:
    """`job_`, 12 hex digits of milliseconds since 1970, 16 random ones."""
    return f"job_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"
