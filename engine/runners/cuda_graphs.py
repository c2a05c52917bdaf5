"""Engine steps captured as CUDA graphs: one launch instead of hundreds.

A graph is captured for one padded shape. All share one memory pool, and the largest is captured
first, as in nano-vllm. On devices without graphs, a step is launched kernel by kernel.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from drawloom.engine.kernels.skinny_gemm import ROWS
from drawloom.engine.runners.step_inputs import Packed, StepShape

Forward = Callable[[Packed, bool], Tensor]
_TRIES = 20


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Any
    packed: Packed
    logits: Tensor


class StepGraphs:
    """Run steps by captured graphs, one for each step shape.

    Args:
        forward: computes the logits of a step from the packed integers on the device; its second
            argument asks for the fused products of small batches.
        blank: turns the packed integers into those of a step of padding.
        memory: the packed integers on the device.
        most: the largest batch.

    Attributes:
        sizes: the batch sizes that are captured; others are padded to them.
    """

    def __init__(
        self,
        forward: Forward,
        blank: Callable[[Packed], None],
        memory: Tensor,
        most: int,
        *,
        small_batch: bool | None = None,
    ) -> None:
        self._forward, self._blank, self._memory = forward, blank, memory
        self._captures = memory.is_cuda
        self._graphs: dict[StepShape, _Captured] = {}
        self._small_batch: dict[int, bool] = {}  # by batch size, once measured
        self._pool: Any = None
        steps = [1, 2, 4, 8, 16, 32, *range(64, most, 64)]
        self.sizes = sorted({size for size in steps if size < most} | {most})
        if small_batch is not None:
            self._small_batch = {size: small_batch for size in self.sizes if size <= ROWS}

    def run(self, shape: StepShape) -> Tensor:
        """Compute the logits of a step whose integers are on the device."""
        if not self._captures:
            small_batch = not shape.chunks and self._small_batch.get(shape.tokens, False)
            return self._forward(Packed(self._memory, shape), small_batch)
        found = self._graphs.get(shape)
        if found is None:
            kept = self._memory.clone()
            found = self._graphs[shape] = self._best(shape)
            self._memory.copy_(kept)
        found.graph.replay()
        return found.logits

    def warm_up(self, shapes: list[StepShape]) -> None:
        """Capture the given shapes, the last first; others are captured at first use."""
        for shape in reversed(shapes):
            self.run(shape)

    def forget(self) -> None:
        """Drop all graphs, because the memory that they read is replaced."""
        self._graphs.clear()
        self._pool = None

    def _best(self, shape: StepShape) -> _Captured:
        """Capture a shape; for a small batch, with or without fused products, as measured."""
        size = shape.tokens
        if size > ROWS or shape.chunks:
            return self._capture(shape, False)
        if size in self._small_batch:
            return self._capture(shape, self._small_batch[size])
        ways = {False: self._capture(shape, False)}
        with suppress(OutOfResources):  # this chip has less shared memory than the tiles need
            ways[True] = self._capture(shape, True)
        seconds = {fused: _seconds(way.graph) for fused, way in ways.items()}
        self._small_batch[size] = best = min(seconds, key=lambda fused: seconds[fused])
        return ways[best]

    def _capture(self, shape: StepShape, small_batch: bool) -> _Captured:
        packed = Packed(self._memory, shape)
        self._blank(packed)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compile kernels and set up cuBLAS outside of the graph
            self._forward(packed, small_batch)
        torch.cuda.current_stream().wait_stream(side)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # on a stream of this device; other engines' threads may use the device meanwhile
        with torch.cuda.graph(
            graph, pool=self._pool, stream=side, capture_error_mode="thread_local"
        ):
            logits = self._forward(packed, small_batch)
        return _Captured(graph, packed, logits)


def _seconds(graph: Any) -> float:
    """Return the seconds of a replay, the best of several."""
    best = float("inf")
    for _ in range(_TRIES):
        torch.cuda.synchronize()
        began = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


__all__ = ["StepGraphs"]
