"""The memory behind the KV cache: one tensor on the device, one in host memory."""

import queue
import threading
from collections import deque
from typing import Any

import torch
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.engine.index import Copies


class KVStore:
    """Keys and values of all layers, on the device.

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


class HostTier:
    """Blocks in host memory, allocated once (pinned for a GPU), and the copies to and from them.

    A CPU copies in a thread of its own, a GPU on a stream of its own: neither makes a step wait.
    Runs of neighbours are one copy.
    """

    def __init__(self, store: KVStore, blocks: int) -> None:
        # as the device has it, block by block: one copy a block
        shape = list(store.tensor.shape)
        self._store, self._gpu = store, store.tensor.is_cuda
        dtype = store.tensor.dtype
        self.memory = torch.zeros(blocks, *shape[1:], dtype=dtype, pin_memory=self._gpu)
        self._done: deque[tuple[list[int], list[int]]] = deque()
        self._told = threading.Event()
        self._jobs: queue.SimpleQueue[Copies | None] = queue.SimpleQueue()
        self._stream: Any = torch.cuda.Stream() if self._gpu else None
        self._pending: deque[tuple[Any, list[int], list[int]]] = deque()
        self._thread: threading.Thread | None = None
        if not self._gpu:
            self._thread = threading.Thread(target=self._work, name="kv-copies", daemon=True)
            self._thread.start()

    def transfer(self, store: KVStore, copies: Copies) -> None:
        self._store = store
        for source, target, count in runs(copies.spills):
            self.memory[target : target + count].copy_(store.tensor[source : source + count])
        if not copies.saves and not copies.loads:
            return
        if not self._gpu:
            self._jobs.put(copies)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._carry_out(copies)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((event, *_blocks(copies)))

    def _carry_out(self, copies: Copies) -> None:
        device = self._store.tensor
        for source, target, count in runs(copies.saves):
            self.memory[target : target + count].copy_(
                device[source : source + count], non_blocking=True
            )
        for source, target, count in runs(copies.loads):
            device[target : target + count].copy_(
                self.memory[source : source + count], non_blocking=True
            )

    def _work(self) -> None:
        with torch.inference_mode():
            while (copies := self._jobs.get()) is not None:
                self._carry_out(copies)
                self._done.append(_blocks(copies))
                self._told.set()

    def arrived(self, wait: float) -> tuple[list[int], list[int]]:
        while self._pending and (wait or self._pending[0][0].query()):
            event, saved, loaded = self._pending.popleft()
            event.synchronize()
            self._done.append((saved, loaded))
            wait = 0.0
        if not self._done and wait and not self._gpu:
            self._told.wait(wait)
        self._told.clear()
        saved, loaded = [], []
        while self._done:
            more = self._done.popleft()
            saved += more[0]
            loaded += more[1]
        return saved, loaded

    def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()


def runs(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Copies ``(from, to)`` as ``(from, to, count)``, neighbours merged."""
    merged: list[tuple[int, int, int]] = []
    for source, target in sorted(pairs):
        if merged:
            start, at, count = merged[-1]
            if source == start + count and target == at + count:
                merged[-1] = (start, at, count + 1)
                continue
        merged.append((source, target, 1))
    return merged


def _blocks(copies: Copies) -> tuple[list[int], list[int]]:
    return [block for block, _ in copies.saves], [block for _, block in copies.loads]


__all__ = ["HostTier", "KVStore", "runs"]
