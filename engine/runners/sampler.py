"""Sample tokens: greedily, or by the Gumbel trick with noise that belongs to the request.

The noise of a token depends on (seed, stream, position, token id) and nothing else. By default the
stream is the conversation: its tokens do not depend on the batch, and forks of one chat differ. A
request may name another stream, so that a request over HTTP is repeatable.
"""

import math
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from drawloom.engine.core.step_plan import Chunk, Sampled
from drawloom.engine.runners.cpu_sampling import draw_all, draw_best
from drawloom.engine.sequence import Sequence
from drawloom.errors import EngineError

_SCORED_AT_ONCE = 64


class Head(Protocol):
    """Compute logits: the output layer of a model."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits [R, V] of hidden states [R, H]."""
        ...


def sample(
    logits: Tensor, chunks: list[Chunk], unknown: tuple[int, ...] = ()
) -> dict[str, Sampled]:
    """Sample a token for each chunk.

    Logits are adjusted in this order: bias and penalties, grammar, temperature, top-k and top-p,
    noise. Log-probabilities are the model's own, before any of that.

    Args:
        logits: [len(chunks), V], any float type.
        chunks: what is sampled for.
        unknown: ids without a token in the tokenizer, ascending; never sampled.

    Returns:
        The results by sequence id.
    """
    plain = all(c.seq.params.temperature == 0 and not is_adjusted(c) for c in chunks)
    logits = logits.float()  # also because argmax of bfloat16 is four times as slow on a CPU
    known = mask_unknown(logits, unknown)
    tokens = known.argmax(-1).tolist() if plain else _choose(known, chunks)
    wanted = [i for i, chunk in enumerate(chunks) if chunk.seq.params.logprobs]
    out = {c.seq.id: Sampled(t) for c, t in zip(chunks, tokens, strict=True)}
    # argmax takes NaN for the largest, so a row with a NaN chooses it
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


def mask_unknown(logits: Tensor, unknown: tuple[int, ...]) -> Tensor:
    """Exclude unknown ids from sampling.

    Ids at the end of the vocabulary, where models are padded, are cut off by a view; others are
    masked in a copy.
    """
    width, count = logits.shape[1], len(unknown)
    while count and unknown[count - 1] == width - 1:
        width, count = width - 1, count - 1
    known = logits[:, :width]
    if count:
        gaps = torch.tensor(unknown[:count], device=logits.device)
        known = known.index_fill(1, gaps, float("-inf"))
    return known


def score(model: Head, hidden: Tensor, tokens: list[int]) -> list[float]:
    """Compute the log-probabilities of given tokens.

    Args:
        hidden: [len(tokens), H], the hidden state before each token.

    Raises:
        EngineError: a log-probability is not finite.
    """
    values: list[float] = []
    for at in range(0, len(tokens), _SCORED_AT_ONCE):  # a row is a vocabulary of floats
        part = torch.tensor(tokens[at : at + _SCORED_AT_ONCE], device=hidden.device)
        table = model.logits(hidden[at : at + _SCORED_AT_ONCE]).float().log_softmax(-1)
        found = table.gather(1, part[:, None])[:, 0]
        if not found.isfinite().all():
            raise EngineError("a score is no number: the model's logits are NaN or infinite")
        values += found.tolist()
    return values


def is_adjusted(chunk: Chunk) -> bool:
    """Return whether a bias, a penalty or a grammar changes a chunk's logits."""
    seq = chunk.seq
    return bool(seq.guide or seq.params.logit_bias or seq.params.penalised)


def _choose(logits: Tensor, chunks: list[Chunk]) -> list[int]:
    """Return the token of each row of `logits` [len(chunks), vocabulary] float32."""
    if any(is_adjusted(chunk) for chunk in chunks):
        logits = logits.clone()
        for row, chunk in zip(logits, chunks, strict=True):
            if is_adjusted(chunk):
                adjust_logits(row, chunk)
    logits, width = logits.cpu(), logits.shape[1]
    tokens = [-1] * len(chunks)
    by_top_k: dict[int, list[int]] = {}
    for index, peak in enumerate(logits.amax(-1).tolist()):
        params = chunks[index].seq.params
        # where the maximum is not finite there is nothing to draw from
        if params.temperature and math.isfinite(peak):
            by_top_k.setdefault(params.top_k if params.top_k < width else 0, []).append(index)
        else:
            tokens[index] = int(logits[index].argmax())
    for top_k, rows in by_top_k.items():
        group = [chunks[index] for index in rows]
        keys = [noise_key(c.seq.params.seed, c.seq.noise, c.end) for c in group]
        heat = [max(c.seq.params.temperature, 1e-6) for c in group]
        top_p = [c.seq.params.top_p for c in group]
        if top_k:
            drawn = draw_best(logits.index_select(0, torch.tensor(rows)), heat, top_k, top_p, keys)
        else:
            given = zip(rows, heat, top_p, keys, strict=True)
            drawn = [draw_all(logits[row], t, p, key) for row, t, p, key in given]
        for index, token in zip(rows, drawn, strict=True):
            tokens[index] = token
    return tokens


def adjust_logits(row: Tensor, chunk: Chunk) -> None:
    """Apply bias, penalties and grammar of one sequence to its logits [V], in place."""
    seq, params = chunk.seq, chunk.seq.params
    if bias := [(id, value) for id, value in params.logit_bias if id < row.shape[0]]:
        ids, values = zip(*bias, strict=True)
        row[torch.tensor(ids, device=row.device)] += torch.tensor(values, device=row.device)
    if params.penalised:
        _penalise(row, seq)
    if seq.guide is not None:
        bits = np.frombuffer(seq.guide.mask(), np.uint8)
        excluded = np.unpackbits(bits, bitorder="little", count=row.shape[0]) == 0
        row.masked_fill_(torch.from_numpy(excluded).to(row.device), float("-inf"))


def _penalise(row: Tensor, seq: Sequence) -> None:
    params, width = seq.params, row.shape[0]
    tokens = torch.from_numpy(np.array(seq.tokens)).to(row.device)  # tensor(list): 5 times as slow
    if (repetition := params.repetition_penalty) != 1.0:
        seen = tokens[tokens < width]  # a repeated token is assigned the same value twice
        value = row[seen]
        row[seen] = torch.where(value > 0, value / repetition, value * repetition)
    presence, frequency = params.presence_penalty, params.frequency_penalty
    if (presence or frequency) and len(tokens) > seq.prompt_length:
        sampled = tokens[seq.prompt_length :]
        sampled = sampled[sampled < width]
        ones = row.new_ones(len(sampled))
        counts = row.new_zeros(width).index_add_(0, sampled, ones)[sampled]
        row[sampled] = row[sampled] - (presence + frequency * counts)


def noise_key(seed: int, stream: str, position: int) -> int:
    """Return the key of the noise at a position of a stream."""
    text = f"{seed}\0{stream}\0{position}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)


__all__ = ["adjust_logits", "is_adjusted", "mask_unknown", "noise_key", "sample", "score"]
