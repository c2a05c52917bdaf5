"""What an engine is told: frozen, serialisable, one dataclass a verb.

The same commands drive a core in a thread and one in a child process. Verbs about KV are answered
with a `KVReply`.
"""

from dataclasses import dataclass, field
from typing import Any

from drawloom.engine.api.engine import GenerateRequest


@dataclass(frozen=True, slots=True)
class Submit:
    request: GenerateRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request; what it held is free when this is answered."""

    request: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Keep a conversation's KV for `ttl` seconds, if possible, to save `value` seconds."""

    conversation: str
    ttl: float
    value: float


@dataclass(frozen=True, slots=True)
class Release:
    """The conversation is over. With `evict`, what only it used is free at once."""

    conversation: str
    evict: bool = True


@dataclass(frozen=True, slots=True)
class Demote:
    """Copy a conversation's KV to host memory and let its device blocks be reclaimed first."""

    conversation: str


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Load a conversation's KV back from host memory."""

    conversation: str


@dataclass(frozen=True, slots=True)
class Fork:
    """`child` continues `parent`'s tokens; their KV is shared, copy-on-write."""

    parent: str
    child: str


@dataclass(frozen=True, slots=True)
class Export:
    """Answered with a conversation's tokens and KV as bytes, for `Import` elsewhere."""

    conversation: str


@dataclass(frozen=True, slots=True)
class Import:
    """Take over a conversation that another engine of the same model exported."""

    conversation: str
    data: bytes = field(repr=False)
    salt: bytes = b""


@dataclass(frozen=True, slots=True)
class UpdateWeights:
    """Go on with other weights of the same shapes: those of a checkpoint folder, or tensors by
    name. No request ends; KV of the old version is never used again."""

    version: str
    folder: str | None = None
    tensors: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Give the device's memory back. Requests wait, and go on after `Wake`."""


@dataclass(frozen=True, slots=True)
class Wake:
    pass


@dataclass(frozen=True, slots=True)
class Stats:
    pass


Command = (
    Submit
    | Cancel
    | Lease
    | Release
    | Demote
    | Prefetch
    | Fork
    | Export
    | Import
    | UpdateWeights
    | Sleep
    | Wake
    | Stats
)

__all__ = [
    "Cancel",
    "Command",
    "Demote",
    "Export",
    "Fork",
    "Import",
    "Lease",
    "Prefetch",
    "Release",
    "Sleep",
    "Stats",
    "Submit",
    "UpdateWeights",
    "Wake",
]
