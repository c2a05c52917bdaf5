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


__all__ = ["KVReply", "LeaseStatus"]
