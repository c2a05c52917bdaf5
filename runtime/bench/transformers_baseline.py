"""transformers on the same weights: `generate`, continuous batching, a compiled static cache."""

import time
from typing import Any

import torch
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.errors import ConfigError


def _llama(spec: ModelConfig) -> tuple[Any, Any]:
    """Return transformers and its configuration of a Llama of this shape.

    Raises:
        ConfigError: it is not installed.
    """
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
    """Run transformers on a CPU or GPU over copies of the weights.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self, spec: ModelConfig, weights: dict[str, Tensor], device: torch.device) -> None:
        self._hf, self._config = _llama(spec)
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
        """Generate exactly `output` tokens for each prompt by `generate`."""
        tokens = torch.tensor(rows, device=self._device)
        mask = torch.ones_like(tokens)
        options = {"max_new_tokens": output, "min_new_tokens": output, "do_sample": False}
        self.model.generate(tokens, attention_mask=mask, pad_token_id=0, **options)
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def generate_batch(self, rows: list[list[int]], output: int) -> None:
        """Generate by continuous batching, set-up included, as its users call it.

        Raises:
            RuntimeError: it gave fewer answers or tokens.
        """
        if self._batched is None:
            self._batched = self._make()
        options = self._hf.GenerationConfig(
            max_new_tokens=output,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            num_blocks=512,
            max_batch_tokens=512,
        )
        found = self._batched.generate_batch(
            inputs=rows, generation_config=options, progress_bar=False
        )
        counts = {len(answer.generated_tokens) for answer in found.values()}
        if len(found) != len(rows) or counts != {output}:
            raise RuntimeError(f"generate_batch gave {len(found)} answers of {counts} tokens")


class GpuTransformers:
    """Run transformers over weights that are on the GPU already, without a copy.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self, spec: ModelConfig, weights: dict[str, Tensor], device: torch.device) -> None:
        hf, config = _llama(spec)
        with torch.device("meta"):
            model = hf.LlamaForCausalLM(config)
        model.load_state_dict(weights, strict=False, assign=True)
        # its buffers are not in a checkpoint
        rotary = type(model.model.rotary_emb)
        model.model.rotary_emb = rotary(config=config).to(device)
        model.tie_weights()
        self._hf, self._device, self.model = hf, device, model.eval()

    def batching(self, rows: list[list[int]], output: int) -> float:
        """Return the tokens a second of `generate_batch`, set-up included."""
        options = self._hf.GenerationConfig(
            max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        self._batch(rows[:2], options)
        began = time.perf_counter()
        made = self._batch(rows, options)
        return made / (time.perf_counter() - began)

    def _batch(self, rows: list[list[int]], options: Any) -> int:
        found = self.model.generate_batch(
            inputs=rows, generation_config=options, progress_bar=False
        )
        return sum(len(answer.generated_tokens) for answer in found.values())

    @torch.inference_mode()
    def compiled(self, row: list[int], output: int) -> float:
        """Return the tokens a second of one sequence over a static cache, compiled before."""
        tokens = torch.tensor([row], device=self._device)
        times = {}
        for count in (output, 2, output, 2):  # the first round compiles
            began = time.perf_counter()
            self.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                cache_implementation="static",
            )
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            times[count] = time.perf_counter() - began
        return (output - 2) / (times[output] - times[2])


__all__ = ["GpuTransformers", "Transformers"]
