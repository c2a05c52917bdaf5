"""Steps of decoding captured as CUDA graphs: a launch instead of hundreds.

A graph is of one batch size, and smaller batches are padded to it; all share one memory pool, the
largest is captured first (nano-vllm; research/engines.md §1.2). Where there are no graphs the same
is computed launch by launch.
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
from drawloom.engine.runners.step_inputs import Layout, Packed

Forward = Callable[[Packed, bool], Tensor]
_TRIES = 20


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Any
    packed: Packed
    logits: Tensor


class StepGraphs:
    """Steps by their layout.

    Attributes:
        sizes: the batches that are captured.

    Args:
        forward: computes a step of a layout from the device's integers, with products of few rows
            or without, to logits.
        blank: makes the integers those of a step of padding alone.
        memory: the device's integers.
        most: the largest batch.
    """

    def __init__(
        self, forward: Forward, blank: Callable[[Packed], None], memory: Tensor, most: int
    ) -> None:
        self._forward, self._blank, self._memory = forward, blank, memory
        self._captures = memory.is_cuda
        self._graphs: dict[Layout, _Captured] = {}
        self._few: dict[int, bool] = {}
        self._pool: Any = None
        steps = [1, 2, 4, 8, 16, 32, *range(64, most, 64)]
        self.sizes = sorted({size for size in steps if size < most} | {most})

    def run(self, layout: Layout) -> Tensor:
        """Logits of a step whose integers are on the device."""
        if not self._captures:
            few = not layout.chunks and self._few.get(layout.tokens, False)
            return self._forward(Packed(self._memory, layout), few)
        found = self._graphs.get(layout)
        if found is None:
            kept = self._memory.clone()
            found = self._graphs[layout] = self._best(layout)
            self._memory.copy_(kept)
        found.graph.replay()
        return found.logits

    def warm_up(self, layouts: list[Layout]) -> None:
        """Capture what every load needs, the largest first; the rest when it is first met."""
        for layout in reversed(layouts):
            self.run(layout)

    def prefer(self, few: bool) -> None:
        """Choose by hand whether products of few rows are used, where nothing can be measured."""
        self._few = {size: few for size in self.sizes if size <= ROWS}

    def forget(self) -> None:
        """The memory that graphs read is gone."""
        self._graphs.clear()
        self._pool = None

    def _best(self, layout: Layout) -> _Captured:
        """As captured; for few rows, whichever way is the faster here."""
        size = layout.tokens
        if size > ROWS or layout.chunks:
            return self._capture(layout, False)
        if size in self._few:
            return self._capture(layout, self._few[size])
        ways = {False: self._capture(layout, False)}
        with suppress(OutOfResources):  # a chip with less shared memory than their tiles want
            ways[True] = self._capture(layout, True)
        seconds = {few: _seconds(way.graph) for few, way in ways.items()}
        self._few[size] = best = min(seconds, key=lambda few: seconds[few])
        return ways[best]

    def _capture(self, layout: Layout, few: bool) -> _Captured:
        packed = Packed(self._memory, layout)
        self._blank(packed)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and cuBLAS is set up outside a graph
            self._forward(packed, few)
        torch.cuda.current_stream().wait_stream(side)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # a stream of this device, and no harm by what another engine's thread does meanwhile
        with torch.cuda.graph(
            graph, pool=self._pool, stream=side, capture_error_mode="thread_local"
        ):
            logits = self._forward(packed, few)
        return _Captured(graph, packed, logits)


def _seconds(graph: Any) -> float:
    """Of a replay, the best of several."""
    best = float("inf")
    for _ in range(_TRIES):
        torch.cuda.synchronize()
        began = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


__all__ = ["StepGraphs"]
