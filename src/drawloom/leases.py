"""Leases: every held resource has one, with an owner and an end."""

from dataclasses import dataclass
from enum import StrEnum


class LeaseStatus(StrEnum):
    """Name an engine's answer to a KV command."""

    ACCEPTED = "accepted"
    CLIPPED = "clipped"
    DEFERRED = "deferred"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class KVReply:
    """Answer a KV command; `tokens` is the length of the prefix that it covers."""

    status: LeaseStatus
    tokens: int


__all__ = ["KVReply", "LeaseStatus"]
