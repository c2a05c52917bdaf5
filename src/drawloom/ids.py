"""Names of things: short, sortable by time of birth, readable in a log."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """Make a name: ``prefix-`` and 13 characters of a millisecond clock and 25 random bits."""
    return _timed(prefix, 25)


def new_secret_id(prefix: str) -> str:
    """Make a name that cannot be guessed: as `new_id`, with 130 random bits."""
    return _timed(prefix, 130)


def _timed(prefix: str, bits: int) -> str:
    value = (time.time_ns() // 1_000_000 & (1 << 40) - 1) << bits | secrets.randbits(bits)
    digits = "".join(_ALPHABET[value >> shift & 31] for shift in range(35 + bits, -1, -5))
    return f"{prefix}-{digits}"


__all__ = ["new_id", "new_secret_id"]
