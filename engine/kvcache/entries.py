"""Entries of the prefix index: blocks with known content, and their loads in flight."""

from dataclasses import dataclass, field

from drawloom.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class IndexEntry:
    """Describe a block with known content and where that content is.

    Attributes:
        key: hash of all tokens up to the end of this block; `parent` is that of the block before.
        tokens: the tokens of this block.
        block: device block, -1 if it is not on the device.
        host_block: block of host memory, -1 if it is not there.
        host_pins: loads, planned or in flight, that need the host block.
        dead: removed from the index; copies in flight may still end.
        saving: a copy to host memory is in flight.
        load: the copy from host memory in flight, if any.
        shared: more than one conversation has used it.
        users: conversations whose records name it; `leases` those that have it leased.
    """

    key: bytes
    parent: bytes
    tokens: tuple[int, ...]
    block: int = -1
    host_block: int = -1
    host_pins: int = 0
    dead: bool = False
    saving: bool = False
    load: "BlockLoad | None" = None
    shared: bool = False
    users: set[str] = field(default_factory=set)
    leases: set[str] = field(default_factory=set)

    @property
    def on_device(self) -> bool:
        """Return whether the whole block is on the device."""
        return self.block >= 0 and self.load is None

    def is_prefix_of(self, other: "IndexEntry | None") -> bool:
        """Return whether another block begins with all tokens of this one and has more."""
        count = len(self.tokens)
        return (
            other is not None and len(other.tokens) > count and other.tokens[:count] == self.tokens
        )


@dataclass(slots=True, eq=False)
class BlockLoad:
    """Describe a copy in flight from host memory into a device block, which it references.

    Attributes:
        private: the block is a sequence's own; the entry does not become known on the device.
        waiters: sequences that are parked until the copy is complete.
    """

    entry: IndexEntry
    block: int
    private: bool = False
    waiters: list[Sequence] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Describe the cached prefix of a sequence.

    Attributes:
        first: number of the first block that is needed (behind a sliding window, else 0).
        entries: the full blocks that are cached, from `first` on.
        partial: a block that begins with the tokens behind them, to be copied from.
        tokens: length of the prefix, in tokens.
    """

    first: int
    entries: list[IndexEntry]
    partial: IndexEntry | None
    tokens: int


__all__ = ["BlockLoad", "IndexEntry", "PrefixMatch"]
