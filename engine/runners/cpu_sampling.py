"""Draw tokens from rows of logits on a CPU, without sorting a vocabulary.

By definition a token is ``argmax(logits / temperature + noise)`` over what top-k and then top-p
keep; `keep` and `gumbel` over a whole vocabulary say so, and take 20 ms a row of 152k tokens. Here
the logits are narrowed first, and noise is computed exactly only for the tokens that may win.
"""

import math
import threading
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = (
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_ALL = 1 << 53
_SLACK = 1e-3
_LEAST = 1.2e-38  # above 0 in float32
_NEVER = np.float32(3e38)

_Integers = NDArray[np.uint64]


def keep(logits: Tensor, top_k: list[int], top_p: list[float]) -> Tensor:
    """Keep the `top_k` best of each row, then the fewest that hold `top_p` of their mass.

    Args:
        logits: [R, V] float32, divided by the temperature.
        top_k: 0 is all. Of equal tokens the first in the row are kept.
        top_p: 1 is all.

    Returns:
        The logits, minus infinity where a token is not kept.
    """
    ordered, order = logits.sort(descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    limit = torch.tensor([k or logits.shape[1] for k in top_k], device=logits.device)
    ordered = ordered.masked_fill(rank[None] >= limit[:, None], float("-inf"))
    mass = (ordered - ordered[:, :1]).exp().cumsum(-1, dtype=torch.float64)
    share = torch.tensor(top_p, dtype=torch.float64, device=logits.device)[:, None]
    beyond = (mass >= share * mass[:, -1:]) & (share < 1)
    ordered[:, 1:] = ordered[:, 1:].masked_fill(beyond[:, :-1], float("-inf"))
    return torch.empty_like(logits).scatter_(1, order, ordered)


def gumbel(keys: list[int], ids: Tensor) -> Tensor:
    """Compute Gumbel noise [R, K] float32 of tokens `ids` [R, K] or [K], with one key a row."""
    counters = (ids.numpy().astype(np.uint64) + np.uint64(1)) * _GOLDEN
    x = _unsigned(keys)[:, None] + counters
    return torch.from_numpy(_noise(_scramble(x, np.empty_like(x))))


def draw_best(
    logits: Tensor, temperatures: list[float], top_k: int, top_p: list[float], keys: list[int]
) -> list[int]:
    """Draw a token for each row from its `top_k` best, of which top-p keeps a part.

    Args:
        logits: [R, V] float32 on the CPU; the largest of each row is finite.
        temperatures: over 0.
        top_k: from 1 to V - 1.
        top_p: 1 is all.
        keys: the key of the noise of each row.
    """
    values, ids = _best(logits, top_k)
    heated = values / torch.tensor(temperatures)[:, None]
    kept = keep(heated, [0] * len(keys), top_p) if min(top_p) < 1 else heated
    winner = (kept + gumbel(keys, ids)).argmax(-1, keepdim=True)
    tokens: list[int] = ids.gather(1, winner)[:, 0].tolist()
    return tokens


def _best(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return values and ids [R, count] of the largest logits, in order; ties by position."""
    values, ids = logits.topk(count + 1)
    edge, ids = values[:, count], ids[:, :count].clone()
    for row in (values[:, count - 1] == edge).nonzero()[:, 0].tolist():
        above = int((values[row] > edge[row]).sum())  # topk took any of those at the edge
        equal = np.flatnonzero(logits[row].numpy() == edge[row].item())
        ids[row, above:] = torch.from_numpy(equal[: count - above])
    ids = ids.sort(-1).values
    values, order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def draw_all(logits: Tensor, temperature: float, top_p: float, key: int) -> int:
    """Draw a token from all of a row, or from what top-p keeps of it.

    Nothing is sorted. The best of all is the answer if what ranks above it weighs less than
    `top_p`; if not, whatever top-p keeps ranks above it, so the best of those is looked at next.
    Each look leaves about half of the mass.

    Args:
        logits: [V] float32 on the CPU; the largest is finite.
        temperature: over 0.
        top_p: 1 is all.
        key: the key of the noise.
    """
    heated = logits / temperature
    peak = heated.amax().item()
    weights = (heated - peak).exp_().clamp_min_(_LEAST)
    values, weight, counters = heated.numpy(), weights.numpy(), _counters(len(logits))
    ids, enough = None, math.inf
    if top_p < 1:
        total = weights.sum(dtype=torch.float64).item()
        enough = top_p * total
        # tokens lighter than this weigh less than 1 - top_p together, and rank last
        heavy = weight >= 0.999 * (total - enough) / len(logits)
        if 4 * np.count_nonzero(heavy) < len(logits):
            ids = np.flatnonzero(heavy)
            values, weight, counters = values[ids], weight[ids], counters[ids]
    room, count = _SCRATCH.of(len(logits)), len(counters)
    bits = _scramble(np.add(counters, _unsigned([key]), out=room[0][:count]), room[1][:count])
    race = _shortest(bits, room[1][:count]) / weight
    slack = math.exp(min(80.0, _SLACK + 1e-6 * abs(peak)))
    while True:
        first = int(race.argmin())
        bound = math.exp(-_noise(bits[first : first + 1])[0].item()) / weight[first] * slack
        few = np.flatnonzero(race <= bound)
        winner = few[(values[few] + _noise(bits[few])).argmax()]
        better = None
        if enough < math.inf:
            better = values > values[winner]
            better[:winner] |= values[:winner] == values[winner]
        if better is None or (weight * better).sum(dtype=np.float64) < enough:
            return int(winner if ids is None else ids[winner])
        race = np.maximum(race, _NEVER * ~better)


def _shortest(bits: _Integers, spare: _Integers) -> NDArray[np.float32]:
    """Return bounds [K] of the times of a race that the first wins: ``-log(u) >= 1 - u``.

    The largest ``log(weight) + gumbel`` is the smallest ``-log(u) / weight``: without a logarithm
    it is known within a few tokens which that is.
    """
    left = np.subtract(np.uint64(_ALL - 1), bits, out=spare)
    return left.view(np.int64).astype(np.float32) * np.float32(1 / _ALL)


def _scramble(x: _Integers, spare: _Integers) -> _Integers:
    """Return 53 random bits for each counter, in place (splitmix64, equal on every device)."""
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        np.right_shift(x, np.uint64(shift), out=spare)
        np.bitwise_xor(x, spare, out=x)
        if factor is not None:
            np.multiply(x, factor, out=x)
    return np.right_shift(x, np.uint64(11), out=x)


def _noise(bits: _Integers) -> NDArray[np.float32]:
    """Return Gumbel noise of 53 random bits."""
    uniform = (bits.astype(np.float64) + 0.5) / _ALL
    noise: NDArray[np.float32] = (-np.log(-np.log(uniform))).astype(np.float32)
    return noise


def _unsigned(keys: list[int]) -> _Integers:
    return np.array([key % (1 << 64) for key in keys], np.uint64)


@lru_cache(maxsize=4)
def _counters(width: int) -> _Integers:
    return np.arange(1, width + 1, dtype=np.uint64) * _GOLDEN


class _Scratch(threading.local):
    """Memory for a vocabulary's random bits: new memory is page faults, four times the work."""

    def __init__(self) -> None:
        self._room = np.empty((2, 0), np.uint64)

    def of(self, width: int) -> _Integers:
        """Return [2, width or more] integers of this thread; what stands there is lost."""
        if self._room.shape[1] < width:
            self._room = np.empty((2, width), np.uint64)
        return self._room


_SCRATCH = _Scratch()

__all__ = ["draw_all", "draw_best", "gumbel", "keep"]
