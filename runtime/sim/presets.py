"""What an engine costs, by name: presets with their derivation, or what `drawloom profile` wrote.

`h200-8b`: Llama-3.1-8B in bf16 on one H200 (4.3 TB/s, 790 TFLOP/s measured; research/engines.md
§5.2). Weights 15.0 GB at 85 % of the bandwidth: 4.1 ms a step; KV 128 KiB a token at 80 %: 38 ns
for each token of context; 16 GFLOP a token at 68 % of the arithmetic: 30 us of prefill, and
4 x 4,096 x 32 FLOP for each pair of a new and a cached token at 50 %: 1.3 ns; copies at 50 GB/s:
2.6 us a token. 100 GB of KV hold 763,000 tokens; 400 GB of host memory 3,050,000.

`4xh200-70b`: Llama-3.1-70B on four, tensor parallel: 141 GB of weights and 320 KiB a token over
17.2 TB/s, 140 GFLOP a token over 3,160 TFLOP/s, all at 85 % of the single card's efficiency for
communication. 380 GB of KV hold 1,160,000 tokens; 1.6 TB of host memory 4,880,000.
"""

from dataclasses import dataclass
from pathlib import Path

from drawloom.cost import CostModel
from drawloom.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Machine:
    """An engine as the simulator sees it. `batch_tokens`: prompt tokens that one step computes;
    `unit`: tokens that its cache counts as one, in blocks of 16 units."""

    cost: CostModel
    kv_tokens: int
    host_tokens: int
    max_sequences: int = 256
    batch_tokens: int = 8192
    unit: int = 64


_PRESETS = {
    "h200-8b": Machine(
        CostModel(
            prefill=29.8e-6,
            prefill_cached=1.33e-9,
            step=4.1e-3,
            decode_sequence=29e-6,
            decode_token=38e-9,
            copy=2.62e-6,
        ),
        763_000,
        3_050_000,
    ),
    "4xh200-70b": Machine(
        CostModel(
            prefill=76.7e-6,
            prefill_cached=1.96e-9,
            step=11.4e-3,
            decode_sequence=75e-6,
            decode_token=28e-9,
            copy=1.64e-6,
        ),
        1_160_000,
        4_880_000,
    ),
}


def machine(name: str) -> Machine:
    """A preset, or the cost model in a file with 24k tokens of KV. Raises `ConfigError`."""
    if name in _PRESETS:
        return _PRESETS[name]
    if Path(name).is_file():
        from drawloom.runtime.bench.profile import load

        return Machine(load(Path(name)), 24 * 1024, 96 * 1024, batch_tokens=512)
    known = ", ".join(sorted(_PRESETS))
    raise ConfigError(f"machine {name!r}: choose {known}, or a file of `drawloom profile --out`")


__all__ = ["Machine", "machine"]
