"""Choosing tokens: greedy, or by the Gumbel trick with noise that belongs to the request.

The noise of a token depends on (seed, lineage, position, token id) and nothing else, so what a
sequence says does not depend on who shares its batch, and forks of one chat differ.
"""

from hashlib import blake2b

import torch
from torch import Tensor

from drawloom.engine.batch import Chunk, Sampled


def sample(logits: Tensor, chunks: list[Chunk]) -> dict[str, Sampled]:
    """One token for each chunk; `logits` is [len(chunks), vocabulary], any float type."""
    logits = logits.float()
    chosen = logits.argmax(-1)
    noisy = [i for i, chunk in enumerate(chunks) if chunk.params.temperature > 0]
    if noisy:
        rows = torch.tensor(noisy, device=logits.device)
        chosen[rows] = _sample_noisy(logits[rows], [chunks[i] for i in noisy])
    tokens = chosen.tolist()
    wanted = [i for i, chunk in enumerate(chunks) if chunk.params.logprobs]
    logprobs = [0.0] * len(chunks)
    if wanted:
        rows = torch.tensor(wanted, device=logits.device)
        picked = logits[rows].log_softmax(-1).gather(1, chosen[rows][:, None])[:, 0]
        for index, value in zip(wanted, picked.tolist(), strict=True):
            logprobs[index] = value
    return {c.seq: Sampled(tokens[i], logprobs[i]) for i, c in enumerate(chunks)}


def _sample_noisy(logits: Tensor, chunks: list[Chunk]) -> Tensor:
    device = logits.device
    params = [chunk.params for chunk in chunks]
    temperature = torch.tensor([p.temperature for p in params], device=device)
    logits = logits / temperature[:, None].clamp_min(1e-6)
    if any(p.top_k or p.top_p < 1 for p in params):
        logits = _filter(logits, [p.top_k for p in params], [p.top_p for p in params])
    keys = [_key(c.params.seed, c.lineage, c.end) for c in chunks]
    return (logits + gumbel(keys, logits.shape[1], device)).argmax(-1)


def _filter(logits: Tensor, top_k: list[int], top_p: list[float]) -> Tensor:
    """Keep the `top_k` best, and of these the smallest set that holds `top_p` of the mass."""
    ordered, order = logits.sort(descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    limit = torch.tensor([k or logits.shape[1] for k in top_k], device=logits.device)
    ordered = ordered.masked_fill(rank[None] >= limit[:, None], float("-inf"))
    mass = ordered.softmax(-1)
    before = mass.cumsum(-1) - mass
    ordered = ordered.masked_fill(
        before >= torch.tensor(top_p, device=logits.device)[:, None], float("-inf")
    )
    return torch.empty_like(logits).scatter_(1, order, ordered)


def _key(seed: int, lineage: str, position: int) -> int:
    text = f"{seed}\0{lineage}\0{position}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)


def gumbel(keys: list[int], width: int, device: torch.device) -> Tensor:
    """Gumbel noise [len(keys), width]: a counter-based generator (splitmix64), equal anywhere."""
    counter = torch.arange(1, width + 1, dtype=torch.int64, device=device)
    x = torch.tensor(keys, dtype=torch.int64, device=device)[:, None]
    x = x + counter[None] * -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    x = x ^ _shift(x, 31)
    uniform = (_shift(x, 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log().float()


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


__all__ = ["gumbel", "sample"]
