"""Choosing tokens: greedy, or by the Gumbel trick with noise that belongs to the request.

The noise of a token depends on (seed, stream, position, token id) and nothing else. The stream is
the lineage, so what a sequence says does not depend on who shares its batch and forks of one chat
differ, or one that the request names, so that a request over HTTP repeats.
"""

from hashlib import blake2b
from typing import Protocol

import torch
from torch import Tensor

from drawloom.engine.plan import Chunk, Sampled
from drawloom.errors import EngineError

_SCORED_AT_ONCE = 64


class Head(Protocol):
    """The output layer of a model."""

    def logits(self, hidden: Tensor) -> Tensor: ...


def sample(
    logits: Tensor, chunks: list[Chunk], unknown: tuple[int, ...] = ()
) -> dict[str, Sampled]:
    """One token for each chunk; `logits` is [len(chunks), vocabulary], any float type.

    In this order: bias and penalties, the grammar, temperature, top-k and top-p, noise.
    Log-probabilities are the model's own, before any of that. The ids of `unknown`, ascending, are
    never chosen: the tokenizer has no tokens for them.
    """
    plain = all(c.seq.params.temperature == 0 and not shaped(c) for c in chunks)
    logits = logits.float()  # also because argmax of bfloat16 is four times slower on a CPU
    known = without(logits, unknown)
    tokens = known.argmax(-1).tolist() if plain else _choose(known, chunks)
    wanted = [i for i, chunk in enumerate(chunks) if chunk.seq.params.logprobs]
    out = {c.seq.id: Sampled(t) for c, t in zip(chunks, tokens, strict=True)}
    # argmax takes NaN for the largest, so that whoever has one chooses it
    chosen = logits[torch.arange(len(tokens)), torch.tensor(tokens)]
    for chunk, sound in zip(chunks, chosen.isfinite().tolist(), strict=True):
        if not sound:
            out[chunk.seq.id].error = EngineError(
                "no token can be chosen: the model's logits are NaN or infinite"
            )
    if wanted:
        rows = torch.tensor(wanted, device=logits.device)
        table = logits[rows].float().log_softmax(-1)
        for row, index in zip(table, wanted, strict=True):
            chunk, result = chunks[index], out[chunks[index].seq.id]
            result.logprob = row[result.token].item()
            if count := chunk.seq.params.top_logprobs:
                best = row[: known.shape[1]].topk(min(count, known.shape[1]))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                result.top = tuple(pairs)
    return out


def without(logits: Tensor, unknown: tuple[int, ...]) -> Tensor:
    """Leave ids out of a choice: those at the end of the vocabulary, where models are padded, by a
    view, others in a copy."""
    width, count = logits.shape[1], len(unknown)
    while count and unknown[count - 1] == width - 1:
        width, count = width - 1, count - 1
    known = logits[:, :width]
    if count:
        gaps = torch.tensor(unknown[:count], device=logits.device)
        known = known.index_fill(1, gaps, float("-inf"))
    return known


def score(model: Head, hidden: Tensor, tokens: list[int]) -> list[float]:
    """Log-probabilities of given tokens; `hidden` [len(tokens), H] stands before each. Raises
    `EngineError` where one is no number."""
    values: list[float] = []
    for at in range(0, len(tokens), _SCORED_AT_ONCE):  # a row is a vocabulary of floats
        part = torch.tensor(tokens[at : at + _SCORED_AT_ONCE], device=hidden.device)
        table = model.logits(hidden[at : at + _SCORED_AT_ONCE]).float().log_softmax(-1)
        found = table.gather(1, part[:, None])[:, 0]
        if not found.isfinite().all():
            raise EngineError("a score is no number: the model's logits are NaN or infinite")
        values += found.tolist()
    return values


def shaped(chunk: Chunk) -> bool:
    seq = chunk.seq
    return bool(seq.guide or seq.params.logit_bias or seq.params.penalised)


def _choose(logits: Tensor, chunks: list[Chunk]) -> list[int]:
    logits = logits.clone()
    for row, chunk in zip(logits, chunks, strict=True):
        if shaped(chunk):
            shape(row, chunk)
    chosen = logits.argmax(-1)
    noisy = [i for i, chunk in enumerate(chunks) if chunk.seq.params.temperature > 0]
    if noisy:
        rows = torch.tensor(noisy, device=logits.device)
        chosen[rows] = _sample_noisy(logits[rows], [chunks[i] for i in noisy])
    tokens: list[int] = chosen.tolist()
    return tokens


def shape(row: Tensor, chunk: Chunk) -> None:
    """Bias, penalties and grammar of one sequence, in place; `row` is [vocabulary]."""
    seq, params = chunk.seq, chunk.seq.params
    if bias := [(id, value) for id, value in params.logit_bias if id < row.shape[0]]:
        ids, values = zip(*bias, strict=True)
        row[torch.tensor(ids, device=row.device)] += torch.tensor(values, device=row.device)
    if params.penalised:
        _penalise(row, seq.tokens, seq.prompt_length, params.repetition_penalty,
                  params.presence_penalty, params.frequency_penalty)  # fmt: skip
    if seq.guide is not None:
        bits = torch.frombuffer(bytearray(seq.guide.mask()), dtype=torch.uint8)
        shifts = torch.arange(8, dtype=torch.uint8)
        allowed = (bits[:, None] >> shifts & 1).flatten().bool().to(row.device)
        row[: allowed.shape[0]].masked_fill_(~allowed[: row.shape[0]], float("-inf"))
        row[allowed.shape[0] :] = float("-inf")


def _penalise(
    row: Tensor, tokens: list[int], prompt: int, repetition: float, presence: float, freq: float
) -> None:
    said = torch.tensor(tokens, device=row.device)
    if repetition != 1.0:
        seen = said[said < row.shape[0]].unique()
        value = row[seen]
        row[seen] = torch.where(value > 0, value / repetition, value * repetition)
    if (presence or freq) and len(tokens) > prompt:
        own = said[prompt:]  # sampled, so known
        ids, counts = own[own < row.shape[0]].unique(return_counts=True)
        row[ids] -= presence + freq * counts


def _sample_noisy(logits: Tensor, chunks: list[Chunk]) -> Tensor:
    device = logits.device
    params = [chunk.seq.params for chunk in chunks]
    temperature = torch.tensor([p.temperature for p in params], device=device)
    logits = logits / temperature[:, None].clamp_min(1e-6)
    if any(p.top_k or p.top_p < 1 for p in params):
        logits = keep(logits, [p.top_k for p in params], [p.top_p for p in params])
    keys = [noise_key(c.seq.params.seed, c.seq.noise, c.end) for c in chunks]
    return (logits + gumbel(keys, logits.shape[1], device)).argmax(-1)


def keep(logits: Tensor, top_k: list[int], top_p: list[float]) -> Tensor:
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


def noise_key(seed: int, stream: str, position: int) -> int:
    """Return the key of the noise at a place in a sequence."""
    text = f"{seed}\0{stream}\0{position}".encode(errors="surrogatepass")
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


__all__ = ["gumbel", "keep", "noise_key", "sample", "score", "shape", "shaped", "without"]
