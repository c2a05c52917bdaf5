"""Names of things: short, sortable by time of birth, readable in a log."""

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """``prefix-`` and 13 characters: 40 bits of milliseconds, then 25 random bits."""
    value = (time.time_ns() // 1_000_000 & (1 << 40) - 1) << 25
    value |= int.from_bytes(os.urandom(4), "big") >> 7
    digits = "".join(_ALPHABET[value >> shift & 31] for shift in range(60, -1, -5))
    return f"{prefix}-{digits}"


__all__ = ["new_id"]
