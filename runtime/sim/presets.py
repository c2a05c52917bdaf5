"""Costs and sizes of engines by name, with their derivation.

`h200-8b`: Llama-3.1-8B in bf16 on one H200, as measured (prefill of 4k 41,800 tokens/s; decode 231,
5,390 and 15,900 tokens/s at 1, 32 and 256 sequences; copies 52 GB/s) and fitted: 21.8 us for a
token of prefill and 1.03 ns for each that it attends to, 4.22 ms a step, 7 us a sequence and 38 ns
a token of its context, 2.51 us to copy one. 100 GB of KV hold 763,000 tokens; 400 GB of host memory
3,050,000. `h200-8b-small` is the same with memory for 200,000 and 800,000 tokens.

`4xh200-70b`: Llama-3.1-70B on four, tensor parallel, not measured: 141 GB of weights and 320 KiB a
token over 17.2 TB/s, 140 GFLOP a token over 3,160 TFLOP/s, at 85 % of the efficiency that the
single card was measured to have. 380 GB of KV hold 1,160,000 tokens; 1.6 TB of host memory
4,880,000.

`cpu-135m`: SmolLM2-135M in bf16 on one AVX-512 core with 16k tokens of KV and no host memory:
prefill of 900 tokens 510 tokens/s, behind a long prefix less; decode 60, 430 and 650 tokens/s at 1,
8 and 16 sequences.
"""

from dataclasses import dataclass
from pathlib import Path

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.cost import CostModel


@dataclass(frozen=True, slots=True)
class Machine:
    """Describe an engine for the simulator.

    Attributes:
        cost: its cost model.
        kv_tokens: capacity of its device in KV tokens.
        host_tokens: capacity of host memory behind it.
        max_sequences: calls that run at a time.
        batch_tokens: prompt tokens that one step computes.
        unit: tokens that its cache counts as one, in blocks of 16 units.
        reserve: a call gets the blocks of its whole output at its start, so that none is preempted.
    """

    cost: CostModel
    kv_tokens: int
    host_tokens: int
    max_sequences: int = 256
    batch_tokens: int = 8192
    unit: int = 64
    reserve: bool = False


_H200 = CostModel(
    prefill=21.8e-6,
    prefill_cached=1.03e-9,
    step=4.22e-3,
    decode_sequence=7e-6,
    decode_token=38e-9,
    copy=2.51e-6,
)
_PRESETS = {
    "h200-8b": Machine(_H200, 763_000, 3_050_000),
    "h200-8b-small": Machine(_H200, 200_000, 800_000),
    "4xh200-70b": Machine(
        CostModel(
            prefill=56e-6,
            prefill_cached=1.52e-9,
            step=11.7e-3,
            decode_sequence=18e-6,
            decode_token=28e-9,
            copy=1.57e-6,
        ),
        1_160_000,
        4_880_000,
    ),
    "cpu-135m": Machine(
        CostModel(
            prefill=1.5e-3,
            prefill_cached=1e-6,
            step=16e-3,
            decode_sequence=0.2e-3,
            decode_token=0.3e-6,
            call=10e-3,
        ),
        16 * 1024,
        0,
        max_sequences=64,
        batch_tokens=512,
        unit=1,
    ),
}


def machine(name: str) -> Machine:
    """Return a preset, or the cost model in a file with 24k tokens of KV.

    Raises:
        ConfigError: there is neither.
    """
    if name in _PRESETS:
        return _PRESETS[name]
    if Path(name).is_file():
        return Machine(CostModel.load(Path(name)), 24 * 1024, 96 * 1024, batch_tokens=512)
    known = ", ".join(sorted(_PRESETS))
    raise ConfigError(f"machine {name!r}: choose {known}, or a file of `drawloom profile --out`")


__all__ = ["Machine", "machine"]
