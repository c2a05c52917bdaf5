"""The engine as a whole: what it says on a GPU beside what the CPU's engine thinks of that, and
whether anything on the way from one step to the next waits for the device."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from drawloom.engine.api.engine import Delta, GenerateRequest
from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.models.checkpoint import dummy
from drawloom.engine.runners.cpu_runner import ModelRunner
from drawloom.engine.runners.gpu_runner import GpuRunner
from drawloom.engine.sequence import SamplingParams
from drawloom.runtime.bench.models import make_engine

SPEC = ModelConfig(
    family="qwen3",
    vocab_size=1100,
    hidden_size=256,
    layers=3,
    heads=8,
    kv_heads=2,
    head_dim=64,
    intermediate_size=512,
    max_position=2048,
    qk_norm=True,
    dtype="float32",
)
_OUTPUT = 24


def _engine(device: torch.device, runner: type[ModelRunner]) -> EngineCore:
    tensors = {name: tensor * 4 for name, tensor in dummy(SPEC, torch.float32).items()}
    config = EngineConfig(kv_tokens=8192, max_sequences=16, max_batch_tokens=256)
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    return make_engine(SPEC, moved, config, device, runner)


def disagreement(device: torch.device, requests: int = 9) -> float:
    """Return the largest difference of a token's log-probability from the CPU engine's.

    Both engines compute in float32. Some prompts begin alike and some are sampled, so that all
    kinds of steps occur. Raises what a request fails with.
    """
    mine, other = _engine(device, GpuRunner), _engine(torch.device("cpu"), ModelRunner)
    rng, worst = random.Random(0), 0.0
    common = rng.choices(range(3, 1000), k=300)
    prompts: dict[str, list[int]] = {}
    for at in range(requests):
        own = rng.choices(range(3, 1000), k=5 + 23 * at)
        prompts[f"r{at}"] = common + own if at % 2 else own
    said: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in prompts}
    deltas: list[Delta] = []
    for at, (name, tokens) in enumerate(prompts.items()):
        params = SamplingParams(
            max_tokens=_OUTPUT,
            ignore_eos=True,
            logprobs=True,
            temperature=0.8 * (at % 3 == 0),
            top_p=0.9,
            seed=at,
        )
        mine.submit(GenerateRequest(name, name, tuple(tokens), params))
        deltas += mine.step()
    while mine.busy:
        deltas += mine.step()
    for delta in deltas:
        if delta.error is not None:
            raise delta.error
        said[delta.request][0].extend(delta.tokens)
        said[delta.request][1].extend(delta.logprobs)
    for name, (tokens, values) in said.items():
        params = SamplingParams(max_tokens=0, score_from=len(prompts[name]))
        whole = (*prompts[name], *tokens)
        other.submit(GenerateRequest(name, name, whole, params))
        scores: tuple[float, ...] = ()
        while other.busy:
            for delta in other.step():
                scores = delta.scores or scores
        found = [abs(a - b) for a, b in zip(values, scores, strict=True)]
        worst = max(worst, *found)
    return worst


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Turn a host wait for the device in the middle of a launch into an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


__all__ = ["disagreement", "no_waiting"]
