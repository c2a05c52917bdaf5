"""Random tiny checkpoints of each family, saved by transformers, and engines over them."""

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from drawloom.engine.config import EngineConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.hosting.build import load
from tests.lanes import slow_unless

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "llama-tied-scaled")
ORACLES = (*FAMILIES, "llama+ahead", "mistral+ahead")
WINDOW = 24
SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}


def _oracle(family: str) -> Any:
    import transformers as hf

    torch.manual_seed(7)
    if family == "llama-tied-scaled":
        rope = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        config = hf.LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=rope)
    else:
        kinds = {
            "llama": hf.LlamaConfig,
            "mistral": hf.MistralConfig,
            "qwen2": hf.Qwen2Config,
            "qwen3": hf.Qwen3Config,
        }
        extra = {"qwen3": {"head_dim": 32}, "mistral": {"sliding_window": WINDOW}}.get(family, {})
        config = kinds[family](**SHAPE, **extra)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():  # wide enough that best tokens differ clearly
        weight.data.normal_(1.0 if "norm" in name else 0.0, 0.15)
    return model


class Oracle:
    """A checkpoint folder and what transformers says with it; engines of it have a CPU's runner,
    or a GPU's without its graphs."""

    def __init__(self, family: str, folder: Path, ahead: bool = False) -> None:
        self.family, self.folder, self.ahead = family, folder, ahead
        self.model = _oracle(family)
        self.model.save_pretrained(folder)
        self._known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        key = (tuple(prompt), count)
        if key not in self._known:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                out = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=count,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            self._known[key] = out[0, len(prompt) :].tolist()
        return self._known[key]

    def follows(self, prompt: list[int], said: list[int]) -> None:
        """Every token said is the best one behind those before it, or one of two equally good."""
        rows = self.logits(prompt + said)[len(prompt) - 1 : -1]
        for at, (row, token) in enumerate(zip(rows, said, strict=True)):
            best = int(row.argmax())
            assert token == best or row[best] - row[token] < 1e-4, (
                f"token {at}: {token}, not {best}"
            )

    def logits(self, tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = self.model(torch.tensor([tokens])).logits[0]
        return result

    def engine(self, **options: Any) -> EngineCore:
        from drawloom.engine.runners.gpu_runner import GpuRunner

        config = EngineConfig(**{"kv_tokens": 4096, **options})
        ahead = self.ahead and not config.deterministic and config.weights == "dense"
        return load(str(self.folder), config, runner=GpuRunner if ahead else None)


@pytest.fixture(scope="session", params=slow_unless(ORACLES, ["llama", "mistral+ahead"]))
def oracle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path
) -> Oracle:
    family, _, ahead = request.param.partition("+")
    return _make(family, tmp_path_factory, tokenizer_file, bool(ahead))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Oracle:
    return _make("llama", tmp_path_factory, tokenizer_file)


def _make(
    family: str, factory: pytest.TempPathFactory, tokenizer_file: Path, ahead: bool = False
) -> Oracle:
    folder = factory.mktemp(family)
    shutil.copy(tokenizer_file, folder)
    return Oracle(family, folder, ahead)


@pytest.fixture(scope="session")
def family_oracle(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path
) -> Callable[[str], Oracle]:
    """The oracle of a family by its name, made once."""
    return lru_cache(lambda family: _make(family, tmp_path_factory, tokenizer_file))


@pytest.fixture
def run_core() -> Callable[..., dict[str, list[int]]]:
    """Steps a core until it is idle and returns the tokens of each request."""

    def run(core: EngineCore) -> dict[str, list[int]]:
        out: dict[str, list[int]] = {}
        while core.busy:
            for delta in core.step():
                assert delta.error is None, delta.error
                out.setdefault(delta.request, []).extend(delta.tokens)
        core.cache.check([])
        return out

    return run
