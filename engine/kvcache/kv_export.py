"""Serialisation of a conversation's KV, for an engine of the same model elsewhere."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from drawloom.errors import EngineError


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identify the model and the layout that KV belongs to: both engines must have the same.

    Attributes:
        model: everything else in the configuration that changes numbers, as text.
        digest: hash of a sample of every weight, because models of one shape differ.
    """

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    model: str
    dtype: str
    block_size: int
    digest: str


def pack(fingerprint: Fingerprint, weights: str, tokens: list[int], kv: Any) -> bytes:
    """Serialise a conversation in the safetensors format.

    Args:
        weights: version of the weights.
        kv: [blocks, layers, 2, block_size, kv_heads, head_dim].
    """
    import torch
    from safetensors.torch import save

    about = {"drawloom": json.dumps(asdict(fingerprint)), "weights": weights}
    tensors = {"tokens": torch.tensor(tokens, dtype=torch.int64), "kv": kv.contiguous()}
    return bytes(save(tensors, metadata=about))


def unpack(fingerprint: Fingerprint, weights: str, data: bytes) -> tuple[list[int], Any]:
    """Read tokens and KV that `pack` serialised.

    Raises:
        EngineError: if this is not KV of this model and these weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(data[8 : 8 + length])["__metadata__"]
        tensors = load(data)
        tokens, kv = tensors["tokens"].tolist(), tensors["kv"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"this is not KV that an engine exported: {error!r}") from None
    mine = json.dumps(asdict(fingerprint))
    if about.get("drawloom") != mine or about.get("weights") != weights:
        raise EngineError(
            f"this KV is of another model or weights ({about.get('drawloom')}, weights "
            f"{about.get('weights')!r}); here are {mine}, weights {weights!r}"
        )
    f, count = fingerprint, -(-len(tokens) // fingerprint.block_size)
    shape = (count, f.layers, 2, f.block_size, f.kv_heads, f.head_dim)
    if tuple(kv.shape) != shape or str(kv.dtype).removeprefix("torch.") != f.dtype:
        raise EngineError(
            f"this KV is {kv.dtype} {list(kv.shape)}, its {len(tokens)} tokens need {f.dtype} "
            f"{list(shape)}"
        )
    if any(not 0 <= token < f.vocab_size for token in tokens):
        raise EngineError(f"this KV is of tokens outside the vocabulary of {f.vocab_size}")
    return tokens, kv


__all__ = ["Fingerprint", "pack", "unpack"]
