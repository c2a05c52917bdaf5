"""`drawloom bench engine`: the embedded engine beside transformers, in one run.

Random Llamas of 5.2 and 60.4 million parameters (6 x 256 with 4,096 tokens, 14 x 512 with 32,000)
on one CPU thread; everything in turn, three times, the best of each counts. `generate` is 64
prompt and 48 output tokens, everything included; `decode` is the time that 48 tokens take over one.
"""

import asyncio
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.models.checkpoint import dummy
from drawloom.engine.runners.cpu_runner import pick_device
from drawloom.engine.sequence import SamplingParams
from drawloom.errors import ConfigError
from drawloom.runtime.bench.host_overhead import mock_steps, scheduler_step, server
from drawloom.runtime.bench.models import make_engine, small_llama
from drawloom.runtime.bench.roofline import thread_limits
from drawloom.runtime.bench.session_return import (
    Crowd,
    crowd,
    decode_step,
    first_token,
    returning,
    run,
)
from drawloom.runtime.bench.static_cache_baseline import Lean
from drawloom.runtime.bench.table import Row, note, report
from drawloom.runtime.bench.transformers_baseline import Transformers
from drawloom.runtime.console import output as show

_PROMPT, _OUTPUT = 64, 48
_PREFILL = 512
_TURNS = 4


def main(
    device: str, quick: bool, json: bool, parts: tuple[str, ...] = (), out: Path | None = None
) -> int:
    """Run the benchmark of a device and print it.

    Args:
        device: cpu, cuda, or auto.
        quick: only a tiny model, to see that it runs.
        json: print JSON instead of a table.
        parts: on a GPU, only these parts.
        out: on a GPU, a file for the figures so far.

    Raises:
        ConfigError: an option is for the other kind of device.
    """
    where = pick_device(device)
    if where.type == "cuda":
        from drawloom.runtime.bench.gpu.suite import main as on_gpu

        return on_gpu(where, parts, json, out)
    if parts or out is not None:
        raise ConfigError("--parts and --out are for a GPU: give --device cuda")
    about = {
        "device": device,
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%d"),
    }
    torch.set_num_threads(1)
    limits = {} if quick else thread_limits()
    rows = []
    for row in measure(where, quick):
        rows.append(row)
        if not json:
            note(row)
    report(rows, about, json, {"ceilings": limits})
    if limits and not json:
        show.console().print({name: round(value, 1) for name, value in limits.items()})
    return 0


def measure(where: torch.device, quick: bool) -> Iterator[Row]:
    """Yield rows as they are measured.

    Raises:
        ConfigError: transformers is not installed.
    """
    if quick:
        spec = small_llama(2, 128, 2000, 512)
        yield from _speed("quick", spec, torch.float32, where, {})
        return
    large, small = small_llama(), small_llama(6, 256, 4096)
    bars = {("generate", 1): 1.25, ("generate", 16): 2.3, ("batching", 16): 3.5, ("lean", 16): 0.9}
    yield from _speed("60M fp32", large, torch.float32, where, bars)
    yield from _speed("60M bf16", large, torch.bfloat16, where, {**bars, ("generate", 1): 1.7})
    yield from _speed("5M fp32", small, torch.float32, where, {**bars, ("generate", 1): 1.7})
    yield from _speed("60M int8", large, torch.float32, where, {}, int8=True)
    yield from _returns(large, small, where)
    yield from _host()


# --- tokens a second ------------------------------------------------------------------------


def _prompts(batch: int, length: int) -> list[list[int]]:
    return [[(7 * b + 3 * i) % 1000 for i in range(length)] for b in range(batch)]


def _speed(
    name: str,
    spec: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    bars: dict[tuple[str, int], float],
    int8: bool = False,
) -> Iterator[Row]:
    weights = dummy(spec, dtype)
    ours = _Ours(_engine(spec, weights, device, int8=int8))
    theirs = Transformers(spec, weights, device)
    lean = Lean(spec, weights, 16) if device.type == "cpu" and not int8 else None
    for batch in (1, 16):
        rows = _prompts(batch, _PROMPT)
        works: list[Callable[[], object]] = [
            partial(ours.generate, rows, 1),
            partial(theirs.generate, rows, 1),
            partial(ours.generate, rows, _OUTPUT),
            partial(theirs.generate, rows, _OUTPUT),
        ]
        if lean is not None:
            works.append(partial(lean.generate, torch.tensor(rows), _OUTPUT))
        times = _race(works)
        later, all_ = batch * (_OUTPUT - 1), batch * _OUTPUT
        first, first_hf, whole, whole_hf = times[:4]
        label = f"{name}, batch {batch}"
        yield Row(
            f"{label}: decode",
            "tokens/s",
            later / (whole - first),
            later / (whole_hf - first_hf),
            "generate",
        )
        yield Row(
            f"{label}: generate 64 + 48",
            "tokens/s",
            all_ / whole,
            all_ / whole_hf,
            "generate",
            bars.get(("generate", batch), 0.0),
        )
        if lean is not None:
            yield Row(
                f"{label}: generate 64 + 48",
                "tokens/s",
                all_ / whole,
                all_ / times[4],
                "lean loop",
                bars.get(("lean", batch), 0.0),
            )
        if batch == 16 and not int8 and dtype is torch.float32:
            seconds = min(_timed(partial(theirs.generate_batch, rows, _OUTPUT)) for _ in range(2))
            yield Row(
                f"{label}: generate 64 + 48",
                "tokens/s",
                all_ / whole,
                all_ / seconds,
                "generate_batch",
                bars.get(("batching", 16), 0.0),
            )
    length = min(_PREFILL, spec.max_position // 2)
    rows = _prompts(4, length)
    mine, other = _race([partial(ours.generate, rows, 1), partial(theirs.generate, rows, 1)])
    tokens = 4 * length
    yield Row(f"{name}: prefill", "tokens/s", tokens / mine, tokens / other, "generate")


def _race(works: list[Callable[[], object]]) -> list[float]:
    """Return the best seconds of each, measured in turn after one round to warm up."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(_TURNS):
        for work, kept in zip(works, times, strict=True):
            seconds = _timed(work)
            if turn:
                kept.append(seconds)
    return [min(kept) for kept in times]


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _engine(
    spec: ModelConfig,
    weights: dict[str, torch.Tensor],
    device: torch.device,
    *,
    kv_tokens: int = 16384,
    host_tokens: int = 0,
    int8: bool = False,
) -> EngineCore:
    layout = "int8" if int8 else "dense"
    config = EngineConfig(kv_tokens=kv_tokens, host_tokens=host_tokens, weights=layout)
    return make_engine(spec, weights, config, device)


class _Ours:
    def __init__(self, core: EngineCore) -> None:
        self.core, self.count = core, 0

    def generate(self, rows: list[list[int]], output: int) -> None:
        self.core.cache.remove_all()
        params = SamplingParams(max_tokens=output, ignore_eos=True)
        for tokens in rows:
            self.count += 1
            name = f"r{self.count}"
            self.core.submit(GenerateRequest(name, name, tuple(tokens), params))
        run(self.core)


# --- programs that come back ----------------------------------------------------------------


def _returns(large: ModelConfig, small: ModelConfig, device: torch.device) -> Iterator[Row]:
    core = _engine(large, dummy(large, torch.float32), device, kv_tokens=9216, host_tokens=9216)
    prefix = [(5 * i) % 997 for i in range(1024)]
    step = decode_step(core, prefix)
    first_token(core, "hit", prefix)
    hit = min(first_token(core, "hit", prefix) for _ in range(5))
    yield Row(
        "60M: first token of a 1k prefix hit", "ms", 1e3 * hit, 1e3 * step, "decode step", -1.3
    )
    found = returning(core, 4096)
    for how in ("leased", "demoted"):
        yield Row(
            f"60M: return to a {how} 4k context, times sooner",
            "x",
            found["recompute"] / found[how],
            1.0,
            "recompute",
            20.0,
        )
    load = Crowd()
    weights = dummy(small, torch.float32)
    capacity = int(0.4 * load.working_set)
    kept = crowd(
        _engine(small, weights, device, kv_tokens=capacity, host_tokens=load.working_set),
        load,
        leases=True,
    )
    lost = crowd(_engine(small, weights, device, kv_tokens=capacity), load, leases=False)
    yield Row(
        "5M: 64 x 20 turns at 0.4 of the working set: recomputed",
        "% of new",
        100 * kept["recomputed"],
        10.0,
        "10 % (the bar)",
        -1.0,
    )
    yield Row("  the same under fcfs-lru", "% of new", 100 * lost["recomputed"], 10.0, "10 %")
    yield Row("  speed", "tokens/s", kept["tokens/s"], lost["tokens/s"], "fcfs-lru", 1.0)


# --- what the engine adds -------------------------------------------------------------------


def _host() -> Iterator[Row]:
    yield Row("scheduler step, 64 running", "us", scheduler_step(), 150.0, "150 us", -1.0)
    yield Row("mock steps a second, batch 1", "1/s", mock_steps(), 50_000.0, "50,000", 1.0)
    times = asyncio.run(server())
    added = times["server"] - times["engine"]
    yield Row("small request over HTTP: added", "ms", added, 2.0, "2 ms", -1.0)


__all__ = ["main", "measure"]
