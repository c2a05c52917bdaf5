"""`drawloom profile`: what computing costs on this machine, as a `CostModel`.

A model's steps are timed over prompts with and without a cached beginning, and over batches and
contexts that decode; the terms are fitted by least squares, and never negative.
"""

import time
from dataclasses import asdict, dataclass

import torch

from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.sequence import SamplingParams
from drawloom.errors import ConfigError
from drawloom.runtime.bench.roofline import thread_limits
from drawloom.runtime.scheduler.cost import CostModel

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold one timed step: a prompt of new and cached tokens, or a batch that decodes.

    Args:
        seconds: how long it took.
        new: prompt tokens that were computed.
        cached: prompt tokens that were in the cache.
        sequences: sequences that decoded.
        context: tokens of all their contexts together.
    """

    seconds: float
    new: int = 0
    cached: int = 0
    sequences: int = 0
    context: int = 0


class Profiler:
    """Time steps of an engine core, one at a time.

    Args:
        core: an idle core that nobody else uses.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core, self._count = core, 0
        self._room = min(core.info.max_context, core.info.kv_tokens) - 64

    def prefill(self, new: int, cached: int) -> Sample | None:
        """Time a prompt of `new` tokens behind `cached` ones; None where the cache is too small."""
        if new + cached > self._room:
            return None
        best = float("inf")
        for _ in range(_TRIES):
            self._count += 1
            tokens = [(self._count + 3 * i) % 251 for i in range(cached + new)]
            if cached:
                self._run(tokens[:cached], 1)
            best = min(best, self._run(tokens, 1))
            self.core.cache.remove_all()
        return Sample(best, new=new, cached=cached)

    def decode(self, sequences: int, context: int) -> Sample | None:
        """Time a decode step of `sequences`; None where the cache is too small.

        Args:
            sequences: the batch.
            context: tokens of each.
        """
        if sequences * (context + 16) > self._room or context + 16 > self.core.info.max_context:
            return None
        params = SamplingParams(max_tokens=12, ignore_eos=True)
        for _ in range(sequences):
            self._count += 1
            name = f"profile-{self._count}"
            tokens = tuple((self._count + 3 * i) % 251 for i in range(context))
            self.core.submit(GenerateRequest(name, name, tokens, params))
        times = []
        while self.core.busy:
            began, decoding = time.perf_counter(), self._all_decode(sequences)
            self.core.step()
            if decoding:
                times.append(time.perf_counter() - began)
        self.core.cache.remove_all()
        return Sample(min(times), sequences=sequences, context=sequences * context)

    def _all_decode(self, sequences: int) -> bool:
        running = self.core.batch.sequences
        return len(running) == sequences and all(s.generated > 0 for s in running)

    def _run(self, tokens: list[int], output: int) -> float:
        self._count += 1
        name, params = f"profile-{self._count}", SamplingParams(output, ignore_eos=True)
        began = time.perf_counter()
        self.core.submit(GenerateRequest(name, name, tuple(tokens), params))
        while self.core.busy:
            self.core.step()
        return time.perf_counter() - began


def profile(core: EngineCore) -> tuple[CostModel, list[Sample]]:
    """Measure the cost model of an engine, in seconds to a minute.

    Returns:
        The model, and the samples that it was fitted to.

    Raises:
        ConfigError: the KV cache is too small for the prompts.
    """
    profiler = Profiler(core)
    found = [profiler.prefill(n, c) for n in (16, 64, 256, 512) for c in (0, 512, 1536)]
    found += [profiler.decode(b, c) for b in (1, 4, 16) for c in (32, 256, 1024)]
    samples = [sample for sample in found if sample is not None]
    if len(samples) < 5:
        raise ConfigError("the KV cache is too small to profile: raise kv_tokens")
    terms = [[1.0, s.new, s.new * (s.cached + s.new / 2), s.sequences, s.context] for s in samples]
    matrix = torch.tensor(terms, dtype=torch.float64)
    seconds = torch.tensor([s.seconds for s in samples], dtype=torch.float64)
    step, new, cached, sequence, token = _fit(matrix, seconds)
    copy = core.copy_seconds / core.info.block_size
    return CostModel(new, cached, step, sequence, token, copy), samples


def _fit(matrix: torch.Tensor, seconds: torch.Tensor) -> list[float]:
    """Fit non-negative coefficients by least squares of relative errors.

    A term whose coefficient would be negative is left out, one at a time.
    """
    matrix, seconds = matrix / seconds[:, None], torch.ones_like(seconds)
    used = list(range(matrix.shape[1]))
    while True:
        found = torch.linalg.lstsq(matrix[:, used], seconds).solution.tolist()
        worst = min(range(len(used)), key=lambda i: found[i] * float(matrix[:, used[i]].mean()))
        if found[worst] >= 0:
            values = dict(zip(used, found, strict=True))
            return [values.get(i, 0.0) for i in range(matrix.shape[1])]
        del used[worst]


def predicted(cost: CostModel, sample: Sample) -> float:
    """Return the seconds that a cost model predicts for a sample."""
    new, cached = sample.new, sample.cached
    prefill = cost.prefill * new + cost.prefill_cached * new * (cached + new / 2)
    return prefill + cost.decode(sample.sequences, sample.context)


def report(core: EngineCore, parameters: int, bytes_: int) -> dict[str, object]:
    """Return the cost model, its median error, and its share of the machine's limits."""
    cost, samples = profile(core)
    errors = sorted(abs(predicted(cost, s) / s.seconds - 1) for s in samples)
    limits = thread_limits()
    kind = "bf16" if bytes_ == 2 * parameters else "fp32"
    alone = min(s.seconds for s in samples if s.sequences == 1)
    stats = core.stats()
    return {
        "cost": asdict(cost),
        "median error": errors[len(errors) // 2],
        "host us a step": 1e6 * stats.overhead_seconds / max(1, stats.batch.steps),
        "share of read bandwidth, decode": bytes_ / alone / 1e9 / limits["read GB/s"],
        "share of arithmetic, prefill": 2e-9
        * parameters
        / max(cost.prefill, 1e-12)
        / limits[f"{kind} GFLOP/s"],
        "ceilings": limits,
    }


__all__ = ["Profiler", "Sample", "predicted", "profile", "report"]
