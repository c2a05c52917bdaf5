"""Search for the cached prefix of a sequence."""

from drawloom.engine.kvcache.keys import chain, root
from drawloom.engine.kvcache.prefix_index import PrefixIndex
from drawloom.engine.kvcache.prefix_match import PrefixMatcher
from drawloom.engine.sequence import SamplingParams, Sequence

SIZE = 4


def _cached(index: PrefixIndex, tokens: list[int], without: tuple[int, ...] = ()) -> None:
    """Index the blocks of tokens, the last one partly filled, except for some."""
    parent = root(b"")
    for at in range(0, len(tokens), SIZE):
        part = tuple(tokens[at : at + SIZE])
        key = chain(parent, part)
        if at // SIZE not in without:
            index.publish(parent, key, part, index.pool.allocate())
        parent = key


def _seq(tokens: list[int], score_from: int = -1) -> Sequence:
    return Sequence("a", "a", tokens, SamplingParams(score_from=score_from))


def test_full_blocks_and_a_part_of_the_next_one_match() -> None:
    index = PrefixIndex(16)
    _cached(index, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    found = PrefixMatcher(index, SIZE, 0).match(_seq([1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12]))
    assert [entry.tokens for entry in found.entries] == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert found.partial is not None and found.partial.tokens == (9, 10)
    assert found.tokens == 9


def test_the_longest_of_several_partial_blocks_matches() -> None:
    index = PrefixIndex(16)
    for tokens in ([1, 2], [1, 2, 3], [1, 9]):
        _cached(index, tokens)
    found = PrefixMatcher(index, SIZE, 0).match(_seq([1, 2, 3, 5, 6]))
    assert found.partial is not None and found.partial.tokens == (1, 2, 3)
    assert found.tokens == 3


def test_the_last_token_and_scored_tokens_never_match() -> None:
    index, tokens = PrefixIndex(16), list(range(12))
    _cached(index, tokens)
    matcher = PrefixMatcher(index, SIZE, 0)
    assert matcher.match(_seq(tokens)).tokens == 11
    assert matcher.match(_seq(tokens, score_from=6)).tokens == 5


def test_a_missing_block_ends_the_match_but_not_behind_a_sliding_window() -> None:
    tokens = list(range(17))
    for window, found_tokens, first in ((0, 4, 0), (5, 16, 3)):
        index = PrefixIndex(16, windowed=window > 0)
        _cached(index, tokens, without=(1,))
        found = PrefixMatcher(index, SIZE, window).match(_seq(tokens))
        assert (found.tokens, found.first) == (found_tokens, first)


def test_the_next_key_is_that_of_the_first_block_that_is_not_cached() -> None:
    index, tokens = PrefixIndex(16), list(range(13))
    _cached(index, tokens[:4])
    matcher = PrefixMatcher(index, SIZE, 0)
    first = chain(root(b""), tokens[:4])
    assert matcher.next_key(_seq(tokens)) == chain(first, tokens[4:8])
    _cached(index, tokens)
    assert matcher.next_key(_seq(tokens)) is None
