"""transformers on the same weights: `generate`, and its continuous batching."""

from typing import Any

import torch
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.errors import ConfigError


def llama(spec: ModelConfig) -> tuple[Any, Any]:
    """The library, and its configuration of a Llama of this shape. Raises `ConfigError` where it is
    not installed."""
    try:
        import transformers as hf
    except ImportError:
        raise ConfigError(
            "this benchmark runs transformers beside us: pip install 'drawloom[dev]'"
        ) from None
    hf.utils.logging.set_verbosity_error()
    return hf, hf.LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        intermediate_size=spec.intermediate_size,
        max_position_embeddings=spec.max_position,
        rms_norm_eps=spec.rms_eps,
        tie_word_embeddings=spec.tied,
    )


class Transformers:
    """Raises `ConfigError` where it is not installed."""

    def __init__(self, spec: ModelConfig, weights: dict[str, Tensor], device: torch.device) -> None:
        self._hf, self._config = llama(spec)
        self._weights, self._device = weights, device
        self.model = self._make()
        self._batched: Any = None

    def _make(self) -> Any:
        model = self._hf.LlamaForCausalLM(self._config)
        model = model.to(self._weights["model.norm.weight"].dtype).eval()
        model.load_state_dict(self._weights)
        return model.to(self._device)

    @torch.inference_mode()
    def generate(self, rows: list[list[int]], output: int) -> None:
        tokens = torch.tensor(rows, device=self._device)
        mask = torch.ones_like(tokens)
        options = {"max_new_tokens": output, "min_new_tokens": output, "do_sample": False}
        self.model.generate(tokens, attention_mask=mask, pad_token_id=0, **options)
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def generate_batch(self, rows: list[list[int]], output: int) -> None:
        """Its continuous batching, set-up included, as its users call it."""
        if self._batched is None:
            self._batched = self._make()
        options = self._hf.GenerationConfig(
            max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0,
            num_blocks=512, max_batch_tokens=512,
        )  # fmt: skip
        found = self._batched.generate_batch(
            inputs=rows, generation_config=options, progress_bar=False
        )
        counts = {len(answer.generated_tokens) for answer in found.values()}
        if len(found) != len(rows) or counts != {output}:
            raise RuntimeError(f"generate_batch gave {len(found)} answers of {counts} tokens")


__all__ = ["Transformers", "llama"]
