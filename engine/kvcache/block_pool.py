"""The block pool: which KV blocks are free, and who holds the others.

Blocks are counted, never looked into. A block is *free*, *held* (by one or more sequences) or
*kept* (held by nobody, its content still worth something; see `cache`).
"""

_FREE, _TAKEN, _RESERVED = 0, 1, 2


class BlockPool:
    """`count` blocks with reference counts.

    A sequence may reserve an extent: neighbouring free blocks that others avoid while they can,
    so that its blocks stay consecutive and a CPU reads its keys as one view instead of gathering
    them (up to 8x faster). A reservation holds nothing: under pressure it is ignored.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self._marks = bytearray(count)
        self._refs = [0] * count
        self._extents: dict[int, int] = {}

    def refs(self, block: int) -> int:
        return self._refs[block]

    def reserve(self, length: int) -> int:
        """The start of `length` neighbouring unreserved free blocks, or -1."""
        start = self._marks.find(bytes(length)) if 0 < length <= self.free else -1
        if start >= 0:
            self._marks[start : start + length] = bytes((_RESERVED,)) * length
            self._extents[start] = length
        return start

    def unreserve(self, start: int) -> None:
        length = self._extents.pop(start, 0)
        for block in range(start, start + length):
            if self._marks[block] == _RESERVED:
                self._marks[block] = _FREE

    def take(self, wish: int = -1) -> int:
        """A free block with one reference, `wish` if it is free; -1 when none is."""
        if not self.free:
            return -1
        block = wish
        if not 0 <= wish < self.count or self._marks[wish] == _TAKEN:
            block = self._marks.find(_FREE)
            if block < 0:
                block = self._marks.find(_RESERVED)
        self._marks[block] = _TAKEN
        self._refs[block] = 1
        self.free -= 1
        return block

    def hold(self, block: int) -> None:
        assert self._marks[block] == _TAKEN, f"block {block} is free"
        self._refs[block] += 1

    def drop(self, block: int) -> bool:
        """Give one reference back; True when it was the last. The block stays taken."""
        assert self._refs[block] > 0, f"block {block} is held by nobody"
        self._refs[block] -= 1
        return self._refs[block] == 0

    def give_back(self, block: int) -> None:
        """Make a block that nobody holds free again."""
        assert self._refs[block] == 0 and self._marks[block] == _TAKEN, f"block {block}"
        self._marks[block] = _FREE
        self.free += 1


__all__ = ["BlockPool"]
