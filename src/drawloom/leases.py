"""Leases: nothing is held without one, and each has an owner and an end."""

from dataclasses import dataclass
from enum import StrEnum


class LeaseStatus(StrEnum):
    """What an engine answers to a KV command."""

    ACCEPTED = "accepted"
    CLIPPED = "clipped"
    DEFERRED = "deferred"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class KVReply:
    """`tokens` is how much of the conversation, from its beginning, the answer covers."""

    status: LeaseStatus
    tokens: int


@dataclass(frozen=True, slots=True)
class EnvLease:
    """An exclusive claim of one program on one environment.

    `warm` says that it was ready when it was asked for, `stall` how long the program waited,
    `cold` how long making it took.
    """

    sandbox: str
    program: str
    host: str
    key: str
    warm: bool
    stall: float
    cold: float


__all__ = ["EnvLease", "KVReply", "LeaseStatus"]
