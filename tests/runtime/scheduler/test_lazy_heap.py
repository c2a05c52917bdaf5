"""Entries that are withdrawn are never returned, and do not pile up."""

from hypothesis import given
from hypothesis import strategies as st

from drawloom.runtime.scheduler.lazy_heap import LazyHeap

acts = st.lists(st.tuples(st.sampled_from(["push", "withdraw", "pop"]), st.integers(0, 30)))


@given(acts)
def test_heap_returns_the_least_entry_that_counts(acts: list[tuple[str, int]]) -> None:
    valid = set[int]()
    heap = LazyHeap[tuple[int]](lambda item: item[0] in valid)
    for act, number in acts:
        if act == "push" and number not in valid:
            valid.add(number)
            heap.push((number,))
        elif act == "withdraw":
            valid.discard(number)
        elif act == "pop" and heap.top is not None:
            valid.discard(heap.top[0])
            heap.pop()
        assert heap.top == ((min(valid),) if valid else None)


def test_heap_drops_withdrawn_entries_below_the_least() -> None:
    last, visited = -1, 0

    def counts(item: tuple[int]) -> bool:
        nonlocal visited
        visited += 1
        return item[0] in (0, last)

    heap = LazyHeap[tuple[int]](counts)
    heap.push((0,))
    for last in range(1, 1001):
        heap.push((last,))  # withdraws the one before
        assert heap.top == (0,)
    before = visited
    heap.push((2000,))
    heap.pop()
    assert heap.top == (1000,)
    assert visited - before < 200
