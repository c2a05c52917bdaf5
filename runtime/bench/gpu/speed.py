"""Decoding and prefill through the whole engine, beside the roofline of this very machine."""

import random
import time
from dataclasses import dataclass

import torch

from drawloom.engine.api.engine import Delta, GenerateRequest
from drawloom.engine.config import ModelConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.runners.gpu_runner import GpuRunner
from drawloom.engine.sequence import SamplingParams
from drawloom.runtime.bench.gpu.end_to_end import no_waiting
from drawloom.runtime.bench.gpu.power import Meter
from drawloom.runtime.bench.gpu.step_timeline import Steps
from drawloom.runtime.bench.models import kv_bytes, multiplied_weights
from drawloom.runtime.bench.roofline import DeviceLimits, synchronize


@dataclass(frozen=True, slots=True)
class Decoded:
    """Hold the decode speed of one batch and how idle the device was."""

    rate: float
    share: float
    idle: float
    joules: float | None


class Speed:
    """Measure an engine on one model, stepping its core by hand."""

    def __init__(self, core: EngineCore, spec: ModelConfig, limits: DeviceLimits) -> None:
        self.core, self.spec, self.limits = core, spec, limits
        assert isinstance(core._runner, GpuRunner)
        self.runner, self._device = core._runner, torch.device(core.info.device)
        self.width = self.runner._dtype.itemsize
        self._rng = random.Random(0)
        self._names = 0
        self._meter = Meter()

    def prompt(self, length: int) -> list[int]:
        return self._rng.choices(range(3, min(self.spec.vocab_size, 50_000)), k=length)

    def ask(self, tokens: list[int], output: int) -> str:
        self._names += 1
        params = SamplingParams(max_tokens=output, ignore_eos=True)
        name = f"speed-{self._names}"
        self.core.submit(GenerateRequest(name, name, tuple(tokens), params))
        return name

    def step(self) -> list[Delta]:
        """Run one step. Raises what a request failed with."""
        deltas = self.core.step()
        for delta in deltas:
            if delta.error is not None:
                raise delta.error
        return deltas

    def begin(self, names: list[str]) -> None:
        """Step until each has said something."""
        waiting = set(names)
        while waiting:
            waiting -= {delta.request for delta in self.step() if delta.tokens}

    def decode(self, batch: int, context: int, steps: int = 64) -> Decoded:
        """`batch` sequences of about `context` tokens that decode together."""
        core = self.core
        names = [self.ask(self.prompt(context), steps + 32) for _ in range(batch)]
        self.begin(names)
        with no_waiting(self._device):
            for _ in range(4):
                self.step()
        with Steps(core) as noted:
            before = core.batch.counters.generated_tokens
            synchronize(self._device)
            used, start = self._meter.joules(), time.perf_counter()
            for _ in range(steps):
                self.step()
            synchronize(self._device)
            took = time.perf_counter() - start
            used_after = self._meter.joules()
        made = core.batch.counters.generated_tokens - before
        for name in names:
            core.cancel(name)
        self._drain()
        rate = made / took
        weights = self.width * multiplied_weights(self.spec)
        per_step = weights + batch * (context + steps / 2) * kv_bytes(self.spec, self.width)
        best = batch / (per_step / self.limits.memory)
        joules = None if used is None or used_after is None else (used_after - used) / made
        return Decoded(rate, rate / best, noted.idle, joules)

    def prefill(self, length: int, count: int = 6) -> tuple[float, float]:
        """Tokens a second of prompts of this length, and the share of the measured product rate."""
        core, device = self.core, self._device
        best = float("inf")
        for _ in range(3):
            for _ in range(count):
                self.ask(self.prompt(length), 1)
            synchronize(device)
            start = time.perf_counter()
            while core.busy:
                self.step()
            synchronize(device)
            best = min(best, time.perf_counter() - start)
            self._drain()
        rate = count * length / best
        spec = self.spec
        body = (
            multiplied_weights(spec) - spec.vocab_size * spec.hidden_size
        )  # one row of the head only
        pairs = length / 2 * spec.heads * spec.head_dim * spec.layers
        return rate, rate * (2 * body + 4 * pairs) / self.limits.matmul

    def _drain(self) -> None:
        while self.core.busy:
            self.step()
        self.core.cache.remove_all()


__all__ = ["Decoded", "Speed"]
