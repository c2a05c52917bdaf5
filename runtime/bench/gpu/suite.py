"""`drawloom bench engine --device cuda`: correctness first, then the ceilings of the machine, then
what the engine reaches of them, alone, with programs, and beside transformers.

Weights are random; everything runs on one GPU. It is to take under 8 minutes on an H200.
"""

import gc
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any

import torch

from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.runners.gpu_runner import GpuRunner
from drawloom.errors import ConfigError
from drawloom.runtime.bench import models
from drawloom.runtime.bench.gpu import kernel_accuracy
from drawloom.runtime.bench.gpu.end_to_end import disagreement
from drawloom.runtime.bench.gpu.kernel_speed import Sizes, table
from drawloom.runtime.bench.gpu.kv_offload import Tiers, shared_prefix
from drawloom.runtime.bench.gpu.runtime_loop import Load, loop
from drawloom.runtime.bench.gpu.speed import Speed
from drawloom.runtime.bench.roofline import DeviceLimits, best_seconds, device_limits
from drawloom.runtime.bench.session_return import Crowd, crowd
from drawloom.runtime.bench.table import Row, note, plain, report
from drawloom.runtime.bench.transformers_baseline import GpuTransformers

PARTS = ("correctness", "speed", "programs", "loop", "kernels", "rivals")


@dataclass(frozen=True, slots=True)
class Model:
    """Describe a model shape, the bars of its decoding by batch, and how idle the GPU may be."""

    name: str
    spec: ModelConfig
    bars: dict[int, float]
    idle: float
    prefill: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Select what is measured. Programs, the runtime loop and rivals run on the first model."""

    models: tuple[Model, ...] = (
        Model("8B", models.LLAMA_8B, {1: 0.85, 32: 0.80, 256: 0.75}, 0.015, 0.68),
        Model("1B", models.LLAMA_1B, {1: 0.0, 32: 0.0}, 0.05),
        Model("0.6B", models.QWEN_06B, {1: 0.50, 32: 0.0, 256: 0.0}, 0.05),
    )
    context: int = 1024
    prefill: int = 4096
    steps: int = 64
    scale: kernel_accuracy.Scale = field(default_factory=kernel_accuracy.Scale)
    sizes: Sizes = field(default_factory=Sizes)
    resumed: int = 20_000
    host_tokens: int = 120_000
    kv_tokens: int = 0
    crowd: Crowd = field(default_factory=lambda: Crowd(64, 20, 720, 30, 0.5))
    loads: tuple[Load, ...] = (Load(32), Load(256))
    shared: tuple[int, int] = (64, 8192)
    rival: tuple[int, int, int] = (32, 512, 128)


class Bench:
    """Runs parts of a plan on a device, and yields rows as they come."""

    def __init__(self, device: torch.device, plan: Plan) -> None:
        self.device, self.plan = device, plan
        self.limits: DeviceLimits | None = None

    def rows(self, parts: tuple[str, ...]) -> Iterator[Row]:
        """Yield rows as they are measured, correctness first.

        Raises:
            ConfigError: a kernel differs from its reference, so that no figure would mean anything.
        """
        if "correctness" in parts:
            yield from self._correctness()
        self.limits = device_limits(self.device)
        first, *others = self.plan.models
        if set(parts) & {"speed", "programs", "loop", "rivals"}:
            yield from self._first(first, parts)
        if "speed" in parts:
            for model in others:
                tensors = models.random_weights(model.spec, self.device)
                core = self._engine(model.spec, tensors)
                del tensors
                yield from self._speed(model, core)
                self._let_go(core)
                del core
        if "kernels" in parts:
            for timed in table(self.device, self.plan.sizes, self._limits):
                bar = 3.0 if timed.kernel.startswith("cascade") else 0.0
                yield Row(
                    f"kernel: {timed.kernel}",
                    "µs",
                    timed.microseconds,
                    timed.microseconds / timed.reached,
                    timed.of,
                    bar,
                )

    @property
    def _limits(self) -> DeviceLimits:
        assert self.limits is not None
        return self.limits

    def _engine(
        self, spec: ModelConfig, tensors: dict[str, torch.Tensor], host_tokens: int = 0
    ) -> EngineCore:
        """Return an engine with the runner of a GPU, whatever the device."""
        config = EngineConfig(
            kv_tokens=self.plan.kv_tokens,
            kv_memory=0.6,
            host_tokens=host_tokens,
            max_sequences=256,
            max_batch_tokens=8192,
        )
        return models.make_engine(spec, tensors, config, self.device, GpuRunner)

    def _correctness(self) -> Iterator[Row]:
        seed = time.time_ns() % (1 << 31)
        for verdict in kernel_accuracy.check(self.device, self.plan.scale, seed):
            yield Row(
                f"{verdict.kernel}, {verdict.dtype}",
                "error",
                verdict.error,
                verdict.allowed,
                "allowed",
                -1.0,
            )
            if not verdict.ok:
                raise ConfigError(
                    f"kernel {verdict.kernel} in {verdict.dtype} is off by {verdict.error:.2g} "
                    f"(seed {seed}); nothing is measured before it is mended"
                )
        off = disagreement(self.device)
        yield Row("engine: log-probability, float32", "error", off, 1e-3, "allowed", -1.0)
        if off > 1e-3:
            raise ConfigError(f"the engine says what the CPU's would not: off by {off:.2g}")

    def _first(self, model: Model, parts: tuple[str, ...]) -> Iterator[Row]:
        plan, tensors = self.plan, models.random_weights(model.spec, self.device)
        if "rivals" in parts:  # before our memory is taken
            rivals = self._rivals(model.spec, tensors)
        core = self._engine(model.spec, tensors, plan.host_tokens)
        del tensors
        gc.collect()
        if "speed" in parts:
            yield from self._speed(model, core)
        if "rivals" in parts:
            yield from self._beside(model, core, rivals)
        if "programs" in parts:
            yield from self._programs(model, core)
        if "loop" in parts:
            yield from self._loops(model, core)
        self._let_go(core)

    def _speed(self, model: Model, core: EngineCore) -> Iterator[Row]:
        plan, speed = self.plan, Speed(core, model.spec, self._limits)
        for batch, bar in model.bars.items():
            found = speed.decode(batch, plan.context, plan.steps)
            name = f"{model.name}: decode {batch} x {plan.context}"
            yield Row(name, "tokens/s", found.rate, found.rate / found.share, "roofline", bar)
            yield Row(f"{name}: GPU idle", "%", 100 * found.idle, 100 * model.idle, "the bar", -1.0)
            if found.joules is not None:
                yield Row(f"{name}: energy", "J/token", found.joules, 0.0, "")
        rate, share = speed.prefill(plan.prefill)
        yield Row(
            f"{model.name}: prefill {plan.prefill}",
            "tokens/s",
            rate,
            rate / share,
            "products",
            model.prefill,
        )

    def _programs(self, model: Model, core: EngineCore) -> Iterator[Row]:
        plan, speed = self.plan, Speed(core, model.spec, self._limits)
        found = Tiers(speed, plan.resumed).measure()
        yield Row(
            f"{model.name}: restore",
            "GB/s",
            found.bandwidth / 1e9,
            self._limits.to_device / 1e9,
            "the bus",
            0.80,
        )
        yield Row("  decoding meanwhile: slower by", "%", 100 * found.slowdown, 5.0, "5 %", -1.0)
        yield Row(f"  first token at {plan.resumed}", "ms", 1e3 * found.resume, 60.0, "60 ms", -1.0)
        yield Row("  the same, computed again", "ms", 1e3 * found.recompute, 1e3 * found.resume, "")
        requests, prefix = plan.shared
        gain = shared_prefix(speed, requests, prefix, plan.steps)
        yield Row(f"{model.name}: {requests} steps over {prefix} shared", "x", gain, 1.0, "plain")
        load = plan.crowd
        kept = crowd(core, load, leases=True)
        yield Row(
            f"{model.name}: {load.programs} agents x {load.turns} turns: recomputed",
            "%",
            100 * kept["recomputed"],
            10.0,
            "10 %",
            -1.0,
        )
        yield Row("  speed", "tokens/s", kept["tokens/s"], 0.0, "")

    def _loops(self, model: Model, core: EngineCore) -> Iterator[Row]:
        for load in self.plan.loads:
            core.cache.remove_all()
            ran = loop(core, load)
            name = f"{model.name}: {load.programs} programs with tools"
            yield Row(name, "tokens/s", ran.rate, 0.0, "")
            yield Row("  tool's end to first token", "ms", 1e3 * ran.returns, 0.0, "")
            yield Row(
                "  GPU idle between steps", "%", 100 * ran.idle, 100 * model.idle, "the bar", -1.0
            )
            yield Row("  host of a step", "ms", 1e3 * ran.host, 0.8, "0.8 ms", -1.0)

    # --- beside transformers --------------------------------------------------------------

    def _rivals(self, spec: ModelConfig, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return what transformers reaches; nothing where it fails."""
        batch, prompt, output = self.plan.rival
        rivals = GpuTransformers(spec, tensors, self.device)
        found = {}
        rows = [[(7 * b + 3 * i) % 1000 + 3 for i in range(prompt)] for b in range(batch)]
        for name, work in (
            ("continuous batching", partial(rivals.batching, rows, output)),
            ("static cache, compiled", partial(rivals.compiled, rows[0], output)),
        ):
            try:
                found[name] = work()
            except Exception as error:
                note(Row(f"transformers, {name}: {error!r:.200}", "", 0.0, 0.0, "failed"))
        self._free()
        return found

    def _beside(self, model: Model, core: EngineCore, rivals: dict[str, float]) -> Iterator[Row]:
        batch, prompt, output = self.plan.rival
        speed = Speed(core, model.spec, self._limits)
        if (theirs := rivals.get("continuous batching")) is not None:

            def ours() -> None:
                for _ in range(batch):
                    speed.ask(speed.prompt(prompt), output)
                while core.busy:
                    speed.step()

            rate = batch * output / best_seconds(ours, self.device, times=2)
            yield Row(
                f"{model.name}: generate {batch} x ({prompt} + {output})",
                "tokens/s",
                rate,
                theirs,
                "continuous batching",
                4.0,
            )
        if (theirs := rivals.get("static cache, compiled")) is not None:
            rate = speed.decode(1, prompt, output).rate
            yield Row(
                f"{model.name}: decode 1 x {prompt}",
                "tokens/s",
                rate,
                theirs,
                "static, compiled",
                1.0,
            )

    # --- memory ---------------------------------------------------------------------------

    def _let_go(self, core: EngineCore) -> None:
        core.close()
        core._runner.sleep()
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def main(device: torch.device, parts: tuple[str, ...], json: bool, out: Path | None = None) -> int:
    """Run the suite and print it; with `out`, write the figures so far after each row.

    Raises:
        ConfigError: an unknown part, or a kernel that is not accurate.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ConfigError(f"parts {', '.join(unknown)}: choose {', '.join(PARTS)}")
    bench, rows, about, began = Bench(device, Plan()), list[Row](), _about(device), time.monotonic()
    measured: dict[str, Any] = {}
    for row in bench.rows(parts or PARTS):
        rows.append(row)
        about["seconds"] = round(time.monotonic() - began)
        measured = {"limits": bench.limits.by_unit() if bench.limits else {}}
        if out is not None:
            out.write_text(dumps({**about, **measured, "rows": plain(rows)}, indent=1))
        if not json:
            note(row)
    report(rows, about, json, measured)
    return 0


def _about(device: torch.device) -> dict[str, Any]:
    import triton

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%d"),
    }


__all__ = ["PARTS", "Bench", "Model", "Plan", "main"]
