"""Blocks whose content is known, and copies of them that are in flight."""

from dataclasses import dataclass, field

from drawloom.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class Entry:
    """A block whose content is known. `tokens` are what it adds to the chain of `parent`.

    `block` is its place on the device, `host` its place in host memory, each -1 where it is not.
    `pins` keeps its host copy: a sequence that is about to load it, or a copy in flight.
    """

    key: bytes
    parent: bytes
    tokens: tuple[int, ...]
    block: int = -1
    host: int = -1
    pins: int = 0
    dead: bool = False
    saving: bool = False
    load: "Load | None" = None
    shared: bool = False
    users: set[str] = field(default_factory=set)
    leases: set[str] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        """Whether all of it is on the device."""
        return self.block >= 0 and self.load is None

    def begins(self, other: "Entry | None") -> bool:
        """Whether another block has all that this one has, and more."""
        count = len(self.tokens)
        return (
            other is not None and len(other.tokens) > count and other.tokens[:count] == self.tokens
        )


@dataclass(slots=True, eq=False)
class Load:
    """A copy from host memory in flight into `block`, which it holds; for an entry that will be
    known there, or into a sequence's own block (`private`)."""

    entry: Entry
    block: int
    private: bool = False
    waiters: list[Sequence] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Match:
    """The kept beginning of a sequence: its full entries (from `first` on, behind a sliding
    window), a partly filled block to copy from, and the tokens found in all."""

    first: int
    entries: list[Entry]
    branch: Entry | None
    tokens: int


__all__ = ["Entry", "Load", "Match"]
