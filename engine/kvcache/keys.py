"""Keys of blocks: chained hashes, by which equal prefixes are found."""

from array import array
from hashlib import blake2b

from drawloom.engine.sequence import Sequence


def chain(parent: bytes, tokens: list[int] | tuple[int, ...]) -> bytes:
    """Return the key of a block: blake2b-128 over its parent's key and its tokens."""
    return blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()


def root(salt: bytes) -> bytes:
    """Return the key before the first token.

    Args:
        salt: differs between tenants, weights and adapters, so that they share no block.
    """
    return blake2b(salt, digest_size=16, person=b"drawloom-kv").digest()


def block_keys(size: int, seq: Sequence, blocks: int) -> list[bytes]:
    """Return the keys of a sequence's first full blocks, each computed once.

    Args:
        size: tokens a block.
        blocks: how many keys are needed; the list may have more.
    """
    known = seq.hashes
    for at in range(len(known), blocks):
        parent = known[-1] if known else root(seq.salt)
        known.append(chain(parent, seq.tokens[at * size : (at + 1) * size]))
    return known


__all__ = ["block_keys", "chain", "root"]
