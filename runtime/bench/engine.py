"""`drawloom bench engine`: decode and prefill beside transformers, on one random model.

Both compute the same float32 Llama of 60 million parameters (14 layers of 512, 32,000 tokens) on
one CPU thread, or a bfloat16 one on a GPU, in turn, three times; the best of each counts. Decode is
the time that 48 output tokens take over one; `generate` is everything, prompts included.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table

from drawloom.engine.base import GenerateRequest
from drawloom.engine.checkpoint import dummy
from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.loading import build
from drawloom.engine.runner import pick_device
from drawloom.engine.sequence import SamplingParams
from drawloom.engine.tokenizer import Tokenizer
from drawloom.errors import ConfigError
from drawloom.runtime.cli import show
from drawloom.runtime.runtime import tiny_model

_PROMPT, _OUTPUT = 64, 48
_PREFILL = 512


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens a second of both, and how many times ours is."""

    what: str
    drawloom: float
    transformers: float

    @property
    def ratio(self) -> float:
        return self.drawloom / self.transformers


def shape(layers: int = 14, hidden: int = 512, vocabulary: int = 32000) -> ModelConfig:
    """The random Llama of research/engines.md §4.4."""
    return ModelConfig(
        family="llama",
        vocab_size=vocabulary,
        hidden_size=hidden,
        layers=layers,
        heads=8,
        kv_heads=4,
        head_dim=hidden // 8,
        intermediate_size=hidden * 3 // 2 * 2,
        max_position=2048,
        dtype="float32",
    )


def main(device: str, quick: bool, json: bool) -> int:
    rows = measure(device, quick)
    about = {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    if json:
        plain = [
            {
                "what": r.what,
                "drawloom": r.drawloom,
                "transformers": r.transformers,
                "ratio": r.ratio,
            }
            for r in rows
        ]
        show.emit(about | {"rows": plain})
        return 0
    table = Table("tokens/s", "drawloom", "transformers", "ratio", title=str(about))
    for row in rows:
        ours, theirs = f"{row.drawloom:,.1f}", f"{row.transformers:,.1f}"
        table.add_row(row.what, ours, theirs, f"{row.ratio:.2f}x")
    show.console().print(table)
    return 0


def measure(device: str, quick: bool) -> list[Row]:
    """Raises `ConfigError` without transformers."""
    try:
        import transformers
    except ImportError:
        raise ConfigError("this benchmark runs transformers beside us: pip install it") from None
    transformers.utils.logging.set_verbosity_error()
    spec = shape(layers=2, hidden=128, vocabulary=2000) if quick else shape()
    where = pick_device(device)
    kind = torch.float32 if where.type == "cpu" else torch.bfloat16
    weights = dummy(spec, kind)
    torch.set_num_threads(1)
    ours = _Ours(spec, weights, where)
    theirs = _Theirs(transformers, spec, weights, where)
    rows = []
    for batch in (1, 16):
        first = _race(
            partial(ours.generate, batch, _PROMPT, 1), partial(theirs.generate, batch, _PROMPT, 1)
        )
        whole = _race(
            partial(ours.generate, batch, _PROMPT, _OUTPUT),
            partial(theirs.generate, batch, _PROMPT, _OUTPUT),
        )
        later = batch * (_OUTPUT - 1)
        mine, other = (later / (w - f) for w, f in zip(whole, first, strict=True))
        rows.append(Row(f"decode, batch {batch}", mine, other))
        mine, other = (batch * _OUTPUT / w for w in whole)
        rows.append(Row(f"generate {_PROMPT} + {_OUTPUT}, batch {batch}", mine, other))
    prefill = _race(
        partial(ours.generate, 4, _PREFILL, 1), partial(theirs.generate, 4, _PREFILL, 1)
    )
    mine, other = (4 * _PREFILL / seconds for seconds in prefill)
    rows.append(Row(f"prefill, 4 x {_PREFILL}", mine, other))
    return rows


def _race(ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    """The best seconds of each of three, taken in turn after one to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(4):
        for work, kept in zip((ours, theirs), times, strict=True):
            began = time.perf_counter()
            work()
            if turn:
                kept.append(time.perf_counter() - began)
    return min(times[0]), min(times[1])


class _Ours:
    def __init__(
        self, spec: ModelConfig, weights: dict[str, torch.Tensor], device: torch.device
    ) -> None:
        config = EngineConfig(kv_tokens=16384)
        tokenizer = Tokenizer.load(tiny_model())
        tokenizer.size = spec.vocab_size
        self.core = build(spec, weights, tokenizer, config, device)
        self.count = 0

    def generate(self, batch: int, prompt: int, output: int) -> None:
        self.core.cache.forget_all()
        params = SamplingParams(max_tokens=output, ignore_eos=True)
        for index in range(batch):
            self.count += 1
            tokens = tuple((7 * index + 3 * i) % 1000 for i in range(prompt))
            name = f"r{self.count}"
            self.core.submit(GenerateRequest(name, name, tokens, params))
        while self.core.busy:
            self.core.step()


class _Theirs:
    def __init__(
        self, hf: Any, spec: ModelConfig, weights: dict[str, torch.Tensor], device: torch.device
    ) -> None:
        config = hf.LlamaConfig(
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.kv_heads,
            intermediate_size=spec.intermediate_size,
            max_position_embeddings=spec.max_position,
        )
        self.model = hf.LlamaForCausalLM(config).to(weights["model.norm.weight"].dtype).eval()
        self.model.load_state_dict(weights)
        self.model.to(device)
        self.device = device

    @torch.inference_mode()
    def generate(self, batch: int, prompt: int, output: int) -> None:
        rows = [[(7 * b + 3 * i) % 1000 for i in range(prompt)] for b in range(batch)]
        tokens = torch.tensor(rows, device=self.device)
        mask = torch.ones_like(tokens)
        options = {"max_new_tokens": output, "min_new_tokens": output, "do_sample": False}
        self.model.generate(tokens, attention_mask=mask, pad_token_id=0, **options)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


__all__ = ["Row", "main", "measure", "shape"]
