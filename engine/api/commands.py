"""Commands to an engine: frozen and serialisable, one dataclass an act.

The same commands drive a core in a thread and one in a child process. Those about the KV of a
conversation are answered with a `KVReply`.
"""

from dataclasses import dataclass, field
from typing import Any

from drawloom.engine.api.engine import GenerateRequest


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue a request."""

    request: GenerateRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the request of this id; its blocks are free when this is answered."""

    request: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Keep a conversation's KV for `ttl` seconds, if possible, to save `value` seconds."""

    conversation: str
    ttl: float
    value: float


@dataclass(frozen=True, slots=True)
class Release:
    """End a conversation. With `evict`, blocks that only it used are free at once."""

    conversation: str
    evict: bool = True


@dataclass(frozen=True, slots=True)
class Demote:
    """Copy a conversation's KV to host memory, and let its device blocks be evicted first."""

    conversation: str


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Load a conversation's KV from host memory."""

    conversation: str


@dataclass(frozen=True, slots=True)
class Fork:
    """Begin `child` as a copy of `parent`; their KV is shared, copy-on-write."""

    parent: str
    child: str


@dataclass(frozen=True, slots=True)
class Export:
    """Return a conversation's tokens and KV as bytes, for `Import` elsewhere."""

    conversation: str


@dataclass(frozen=True, slots=True)
class Import:
    """Take over a conversation that another engine of the same model exported."""

    conversation: str
    data: bytes = field(repr=False)
    salt: bytes = b""


@dataclass(frozen=True, slots=True)
class UpdateWeights:
    """Replace the weights by others of the same shapes, while requests go on.

    KV of the old weights is never used again.

    Attributes:
        version: name of the new weights.
        folder: checkpoint to read them from, or else
        tensors: the weights by name.
    """

    version: str
    folder: str | None = None
    tensors: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Give the device's memory back; requests wait until `WakeUp`."""


@dataclass(frozen=True, slots=True)
class WakeUp:
    """Take the device's memory again, and go on with requests."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Return the engine's statistics."""


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
    | WakeUp
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
    "WakeUp",
]
