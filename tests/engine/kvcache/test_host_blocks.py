"""Allocation of blocks in host memory."""

from drawloom.engine.kvcache.entries import IndexEntry
from drawloom.engine.kvcache.host_blocks import HostBlocks


def _entry(host: HostBlocks, name: bytes) -> IndexEntry:
    entry = IndexEntry(name, b"", (1,))
    host.assign(entry, host.allocate())
    return entry


def test_there_are_no_more_blocks_than_were_asked_for() -> None:
    host = HostBlocks(2)
    assert {host.allocate(), host.allocate()} == {0, 1}
    assert host.allocate() == -1
    assert host.used == 2


def test_the_victim_is_the_least_recently_used_entry_that_is_not_pinned() -> None:
    host = HostBlocks(3)
    first, second, third = (_entry(host, name) for name in (b"1", b"2", b"3"))
    host.touch(first)
    assert host.victim() is second
    host.pin(second)
    assert host.victim() is third
    host.evict_next(first)
    assert host.victim() is first
    host.unpin(second)
    host.evict_next(second)
    assert host.victim() is second


def test_the_block_of_a_removed_entry_is_freed_when_it_is_unpinned() -> None:
    host = HostBlocks(1)
    entry = _entry(host, b"1")
    host.pin(entry)
    entry.dead = True
    host.unlist(entry)
    assert (host.used, host.victim()) == (1, None)
    host.unpin(entry)
    assert (host.used, entry.host_block) == (0, -1)
