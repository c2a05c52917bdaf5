"""Programs that come back: what restoring their KV from host memory takes, and what it costs those
who decode meanwhile; many of them in less memory than they want."""

import statistics
import time
from dataclasses import dataclass

import torch

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.sequence import SamplingParams
from drawloom.runtime.bench.gpu.speed import Speed
from drawloom.runtime.bench.gpu.step_timeline import Steps
from drawloom.runtime.bench.models import kv_bytes
from drawloom.runtime.bench.roofline import synchronize
from drawloom.runtime.bench.session_return import first_token, run


@dataclass(frozen=True, slots=True)
class Restored:
    """Hold how fast KV comes back from host memory."""

    bandwidth: float
    share: float
    resume: float
    recompute: float
    slowdown: float


class Tiers:
    """Measure an engine with host memory behind its KV cache."""

    def __init__(self, speed: Speed, context: int) -> None:
        self._speed, self._core = speed, speed.core
        self._context, self._device = context, torch.device(speed.core.info.device)

    def measure(self, tries: int = 5, others: int = 32) -> Restored:
        core, tokens = self._core, self._speed.prompt(self._context)
        core.cache.remove_all()
        recompute = first_token(core, "chat", tokens)
        core.handle(do.Demote("chat"))
        run(core)
        seconds, resumes = [], []
        for turn in range(tries):
            self._empty()
            synchronize(self._device)
            began = time.perf_counter()
            core.handle(do.Prefetch("chat"))
            run(core)
            synchronize(self._device)
            seconds.append(time.perf_counter() - began)
            self._empty()
            resumes.append(first_token(core, "chat", [*tokens, 3 + turn]))
        size = self._context * kv_bytes(self._speed.spec, self._speed.width)
        bandwidth = size / min(seconds)
        slowdown = self._slowdown(others)
        core.handle(do.Release("chat"))
        return Restored(
            bandwidth,
            bandwidth / self._speed.limits.to_device,
            statistics.median(resumes),
            recompute,
            slowdown,
        )

    def _empty(self) -> None:
        """Free all device blocks that have a copy in host memory."""
        self._core.cache.evict_all()
        self._core.transfers.start()

    def _slowdown(self, others: int, steps: int = 48) -> float:
        """Return how much slower other sequences decode while a chat is brought back repeatedly."""
        core, speed = self._core, self._speed
        length = min(1024, core.info.kv_tokens // (4 * others))
        names = [speed.ask(speed.prompt(length), 3 * steps) for _ in range(others)]
        speed.begin(names)
        times = []
        for copies in (False, True):
            with Steps(core) as noted:
                for _ in range(steps):
                    if copies and not core.cache.copies_in_flight:
                        self._empty()
                        core.handle(do.Prefetch("chat"))
                    speed.step()
            times.append(statistics.median(noted.milliseconds))
        for name in names:
            core.cancel(name)
        run(core)
        return max(0.0, times[1] / times[0] - 1) if times[0] else 0.0


def shared_prefix(speed: Speed, requests: int, prefix: int, steps: int = 32) -> float:
    """Return how many times faster sequences with one prefix decode when it is read once."""
    core, common = speed.core, speed.prompt(prefix)
    packer, rates = speed.runner.packer, []
    params = SamplingParams(max_tokens=3 * steps, ignore_eos=True)
    for once in (False, True):
        packer.cascades = once
        first_token(core, "first", common)
        names = [f"shared-{once}-{at}" for at in range(requests)]
        for at, name in enumerate(names):
            tokens = (*common, *speed.prompt(16 + at % 7))
            core.submit(GenerateRequest(name, name, tokens, params))
        speed.begin(names)
        with Steps(core) as noted:
            for _ in range(steps):
                speed.step()
        rates.append(statistics.median(noted.milliseconds))
        for name in names:
            core.cancel(name)
        run(core)
        core.cache.remove_all()
    return rates[0] / rates[1] if rates[1] else 0.0


__all__ = ["Restored", "Tiers", "shared_prefix"]
