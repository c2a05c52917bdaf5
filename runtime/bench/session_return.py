"""Costs of programs that come back: prefix hits, leases, host memory, too little KV memory."""

import heapq
import random
import time
from dataclasses import dataclass

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.sequence import SamplingParams

_ONE = SamplingParams(max_tokens=1, ignore_eos=True)


def run(core: EngineCore) -> None:
    """Step a core until it is idle."""
    while core.busy:
        core.step()


def first_token(core: EngineCore, conversation: str, tokens: list[int]) -> float:
    """Return the seconds from submission to the first token.

    Raises:
        Exception: the request failed.
    """
    began = time.perf_counter()
    core.submit(GenerateRequest(f"{conversation}:{began}", conversation, tuple(tokens), _ONE))
    while core.batch.counters.generated_tokens >= 0:
        deltas = core.step()
        if failed := [delta.error for delta in deltas if delta.error is not None]:
            raise failed[0]
        if any(delta.tokens for delta in deltas):
            break
    seconds = time.perf_counter() - began
    run(core)
    return seconds


def decode_step(core: EngineCore, tokens: list[int], count: int = 24) -> float:
    """Return the seconds of a step that decodes one sequence behind `tokens`."""
    params = SamplingParams(max_tokens=count, ignore_eos=True)
    core.submit(GenerateRequest(f"d{time.perf_counter()}", "decode", tuple(tokens), params))
    while not any(d.tokens for d in core.step()):
        pass
    began, before = time.perf_counter(), core.batch.counters.steps
    run(core)
    steps = core.batch.counters.steps - before
    core.handle(do.Release("decode"))
    return (time.perf_counter() - began) / max(1, steps)


def returning(core: EngineCore, context: int) -> dict[str, float]:
    """Return the seconds to the first token of a program that comes back to `context` tokens."""
    rng = random.Random(context)
    tokens = [rng.randrange(1000) for _ in range(context)]
    found = {"recompute": first_token(core, "chat", tokens)}
    core.handle(do.Lease("chat", 600.0, 1e9))
    run(core)
    found["leased"] = min(first_token(core, "chat", [*tokens, i]) for i in range(3))
    demoted = []
    for turn in range(3):
        core.handle(do.Sleep())  # what is only in host memory now must come back
        core.handle(do.WakeUp())
        demoted.append(first_token(core, "chat", [*tokens, 10 + turn]))
    found["demoted"] = min(demoted)
    core.handle(do.Release("chat"))
    return found


@dataclass(frozen=True, slots=True)
class Crowd:
    """Describe many programs with tools between their turns, in too little memory.

    Args:
        programs: how many.
        turns: turns of each.
        delta: new prompt tokens of a turn.
        output: output tokens of a turn.
        gap: mean seconds between turns.
    """

    programs: int = 64
    turns: int = 20
    delta: int = 24
    output: int = 8
    gap: float = 0.4

    @property
    def working_set(self) -> int:
        """Return the tokens of all contexts at their largest."""
        return self.programs * self.turns * (self.delta + self.output)


def crowd(core: EngineCore, load: Crowd, leases: bool) -> dict[str, float]:
    """Run a crowd and return the share of tokens recomputed and the new tokens a second.

    Args:
        core: the engine.
        load: the programs.
        leases: lease KV and run the oldest program first, as the scheduler does.
    """
    rng = random.Random(7)
    contexts = {
        f"p{i}": [rng.randrange(1000) for _ in range(load.delta)] for i in range(load.programs)
    }
    turns = dict.fromkeys(contexts, 0)
    ready = [(0.0, name) for name in contexts]
    params = SamplingParams(max_tokens=load.output, ignore_eos=True)
    began, before = time.monotonic(), core.stats()
    while any(turn < load.turns for turn in turns.values()):
        now = time.monotonic() - began
        while ready and ready[0][0] <= now:
            _, name = heapq.heappop(ready)
            # the oldest program first, as the scheduler does; without it, as they come
            priority = float(name[1:]) if leases else 0.0
            tokens = tuple(contexts[name])
            core.submit(GenerateRequest(f"{name}:{turns[name]}", name, tokens, params, priority))
        if not core.busy:
            time.sleep(max(0.0, ready[0][0] - now))
            continue
        for delta in core.step():
            name = delta.request.partition(":")[0]
            contexts[name] += delta.tokens
            if delta.finish is None:
                continue
            turns[name] += 1
            if turns[name] == load.turns:
                core.handle(do.Release(name, evict=leases))
                continue
            if leases:
                core.handle(do.Lease(name, 2 * load.gap, len(contexts[name]) * 1e-3))
            contexts[name] += [rng.randrange(1000) for _ in range(load.delta)]
            heapq.heappush(ready, (now + rng.expovariate(1 / load.gap), name))
    seconds, after = time.monotonic() - began, core.stats()
    return {
        "recomputed": (after.cache.recomputed_tokens - before.cache.recomputed_tokens)
        / load.working_set,
        "tokens/s": load.working_set / seconds,
        "from host": float(after.cache.hit_host_tokens - before.cache.hit_host_tokens),
    }


__all__ = ["Crowd", "crowd", "decode_step", "first_token", "returning", "run"]
