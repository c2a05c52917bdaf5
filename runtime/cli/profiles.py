"""Command `drawloom profile`: the cost model of this machine."""

from pathlib import Path
from typing import Any

from rich.table import Table

from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.hosting.build import load
from drawloom.engine.models import checkpoint
from drawloom.runtime.bench import calibrate
from drawloom.runtime.console import output
from drawloom.runtime.dispatch.backends import TINY, tiny_model
from drawloom.runtime.scheduler.cost import CostModel

_KV_TOKENS = 24 * 1024


def main(model: str, device: str, dtype: str, kv_tokens: int, out: Path | None, json: bool) -> int:
    """Measure a model's cost model and print it.

    Args:
        model: a model folder, a hub id, or the bundled model.
        device: auto, cpu or cuda.
        dtype: auto, float32 or bfloat16.
        kv_tokens: tokens of KV cache; 0 is a default that is large enough.
        out: write the cost model to this file.
        json: print JSON.
    """
    folder = checkpoint.resolve(str(tiny_model()) if model == TINY else model)
    tokens = kv_tokens or _KV_TOKENS
    config = EngineConfig(device, dtype, kv_tokens=tokens, host_tokens=tokens)
    core = load(str(folder), config)
    spec = ModelConfig.load(folder)
    parameters = sum(_count(shape) for shape in checkpoint.shapes(spec).values())
    width = 2 if "bfloat16" in str(getattr(core._runner, "_dtype", "")) else 4
    output.note(f"measuring {model} on {core.info.device}, some seconds to a minute")
    found: dict[str, Any] = calibrate.report(core, parameters, parameters * width)
    core.close()
    if out is not None:
        CostModel(**found["cost"]).save(out)
        output.note(f"written to {out}")
    if json:
        output.emit({"model": model, "device": core.info.device} | found)
        return 0
    table = Table("what", "value", title=f"{model} on {core.info.device}")
    for name, value in found["cost"].items():
        table.add_row(f"cost: {name}", f"{1e6 * value:,.3f} us")
    for name in ("median error", "share of read bandwidth, decode", "share of arithmetic, prefill"):
        table.add_row(name, f"{found[name]:.0%}")
    table.add_row("host time of a step", f"{found['host us a step']:,.0f} us")
    for name, value in found["ceilings"].items():
        table.add_row(f"ceiling: {name}", f"{value:,.1f}")
    output.console().print(table)
    return 0


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


__all__ = ["main"]
