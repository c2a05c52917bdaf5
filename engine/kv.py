"""The memory behind the KV cache: one tensor, laid out for its device."""

import torch
from torch import Tensor

from drawloom.engine.config import ModelConfig


class KVStore:
    """Keys and values of all layers.

    On a GPU a block is contiguous over all layers, [blocks, layers, 2, size, kv_heads, d], so
    that moving one is one copy. A CPU reads the context of a sequence as one view instead:
    [layers, 2, kv_heads, blocks, size, d]. Either way a layer is seen as [blocks, size, kv_heads,
    d] with strides.
    """

    def __init__(
        self, config: ModelConfig, blocks: int, size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        layers, heads, depth = config.layers, config.kv_heads, config.head_dim
        # zeros, not empty: a masked score of 0 * NaN would be NaN
        if device.type == "cpu":
            memory = torch.zeros(layers, 2, heads, blocks, size, depth, dtype=dtype)
            self.tensor = memory.permute(3, 0, 1, 4, 2, 5)
        else:
            shape = (blocks, layers, 2, size, heads, depth)
            self.tensor = torch.zeros(shape, dtype=dtype, device=device)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [blocks, size, kv_heads, d]."""
        return self.tensor[:, index, 0], self.tensor[:, index, 1]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of a block over all layers."""
        self.tensor[target, :, :, :tokens] = self.tensor[source, :, :, :tokens]


__all__ = ["KVStore"]
