"""Choose tokens: greedy, or by the Gumbel trick with noise that belongs to the request.

The noise of a token depends on (seed, stream, position, token id) and nothing else. The stream is
the conversation, so what a sequence says does not depend on who shares its batch and forks of one
chat differ, or one that the request names, so that a request over HTTP repeats.
"""

import math
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from drawloom.engine.core.step_plan import Chunk, Sampled
from drawloom.engine.runners.cpu_sampling import draw_all, draw_best
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
        table = logits.index_select(0, rows).log_softmax(-1)
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
    """Return the token of each row of `logits` [len(chunks), vocabulary] float32."""
    if any(shaped(chunk) for chunk in chunks):
        logits = logits.clone()
        for row, chunk in zip(logits, chunks, strict=True):
            if shaped(chunk):
                shape(row, chunk)
    logits, width = logits.cpu(), logits.shape[1]
    tokens = [-1] * len(chunks)
    alike: dict[int, list[int]] = {}
    for index, peak in enumerate(logits.amax(-1).tolist()):
        params = chunks[index].seq.params
        # where the best is no number there is nothing to draw from
        if params.temperature and math.isfinite(peak):
            alike.setdefault(params.top_k if params.top_k < width else 0, []).append(index)
        else:
            tokens[index] = int(logits[index].argmax())
    for top_k, rows in alike.items():
        few = [chunks[index] for index in rows]
        keys = [noise_key(c.seq.params.seed, c.seq.noise, c.end) for c in few]
        heat = [max(c.seq.params.temperature, 1e-6) for c in few]
        top_p = [c.seq.params.top_p for c in few]
        if top_k:
            drawn = draw_best(logits.index_select(0, torch.tensor(rows)), heat, top_k, top_p, keys)
        else:
            given = zip(rows, heat, top_p, keys, strict=True)
            drawn = [draw_all(logits[row], t, p, key) for row, t, p, key in given]
        for index, token in zip(rows, drawn, strict=True):
            tokens[index] = token
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
        bits = np.frombuffer(seq.guide.mask(), np.uint8)
        ruled_out = np.unpackbits(bits, bitorder="little", count=row.shape[0]) == 0
        row.masked_fill_(torch.from_numpy(ruled_out).to(row.device), float("-inf"))


def _penalise(
    row: Tensor, tokens: list[int], prompt: int, repetition: float, presence: float, freq: float
) -> None:
    width = row.shape[0]
    said = torch.from_numpy(np.array(tokens)).to(row.device)  # tensor(list) is 5 times as slow
    if repetition != 1.0:
        seen = said[said < width]  # one that was said twice gets the same value twice
        value = row[seen]
        row[seen] = torch.where(value > 0, value / repetition, value * repetition)
    if (presence or freq) and len(tokens) > prompt:
        own = said[prompt:]  # sampled, so known
        own = own[own < width]
        counts = row.new_zeros(width).index_add_(0, own, row.new_ones(len(own)))[own]
        row[own] = row[own] - (presence + freq * counts)


def noise_key(seed: int, stream: str, position: int) -> int:
    """Return the key of the noise at a place in a sequence."""
    text = f"{seed}\0{stream}\0{position}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)


__all__ = ["noise_key", "sample", "score", "shape", "shaped", "without"]
