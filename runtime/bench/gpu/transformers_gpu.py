"""transformers on the same weights and the same GPU: its continuous batching, and its static cache
with a compiled step."""

import time
from typing import Any

import torch
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.runtime.bench.transformers_baseline import llama


class Rivals:
    """A model of transformers over weights that are there already. Raises `ConfigError` where it is
    not installed."""

    def __init__(self, spec: ModelConfig, weights: dict[str, Tensor], device: torch.device) -> None:
        hf, config = llama(spec)
        with torch.device("meta"):
            model = hf.LlamaForCausalLM(config)
        model.load_state_dict(weights, strict=False, assign=True)
        # its buffers are not in a checkpoint
        rotary = type(model.model.rotary_emb)
        model.model.rotary_emb = rotary(config=config).to(device)
        model.tie_weights()
        self._hf, self._device, self.model = hf, device, model.eval()

    def batching(self, rows: list[list[int]], output: int) -> float:
        """Tokens a second of `generate_batch`, set-up included."""
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
        """Tokens a second of one sequence that decodes over a static cache, compiled before."""
        tokens = torch.tensor([row], device=self._device)
        times = {}
        for count in (output, 2, output, 2):  # the first round compiles
            began = time.perf_counter()
            self.model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count,
                min_new_tokens=count, do_sample=False, pad_token_id=0,
                cache_implementation="static",
            )  # fmt: skip
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            times[count] = time.perf_counter() - began
        return (output - 2) / (times[output] - times[2])


__all__ = ["Rivals"]
