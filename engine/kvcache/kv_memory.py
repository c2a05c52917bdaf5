"""Memory of the KV cache: one tensor on the device, one in host memory."""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.engine.kvcache.copies import Copies, runs

log = logging.getLogger("drawloom.engine")


class KVStore:
    """Hold the keys and values of all layers on the device.

    If `paged`, for a GPU, a block is contiguous over all layers, so that moving one is one copy:
    [blocks, layers, 2, kv_heads, size, d]. A CPU reads the context of a sequence as one view
    instead: [layers, 2, kv_heads, blocks, size, d]. Either way a layer is a strided view of
    [blocks, size, kv_heads, d].

    Args:
        size: tokens a block.

    Attributes:
        tensor: a view of [blocks, layers, 2, size, kv_heads, d].
        moved: a view of the same with each block in the order of memory, for copying.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        size: int,
        device: torch.device,
        dtype: torch.dtype,
        paged: bool = False,
    ) -> None:
        layers, heads, depth = config.layers, config.kv_heads, config.head_dim
        self.paged = paged
        # zeros, not empty: a masked score of 0 * NaN would be NaN
        if paged:
            shape = (blocks, layers, 2, heads, size, depth)
            self.moved = torch.zeros(shape, dtype=dtype, device=device)
            self.tensor = self.seen(self.moved)
        else:
            memory = torch.zeros(layers, 2, heads, blocks, size, depth, dtype=dtype, device=device)
            self.tensor = self.moved = memory.permute(3, 0, 1, 4, 2, 5)

    def seen(self, moved: Tensor) -> Tensor:
        """Return blocks in the order of memory as blocks of `tensor`, or the other way round."""
        return moved.transpose(-3, -2) if self.paged else moved

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of a layer, each [blocks, size, kv_heads, d]."""
        return self.tensor[:, index, 0], self.tensor[:, index, 1]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of a block over all layers."""
        self.tensor[target, :, :, :tokens] = self.tensor[source, :, :, :tokens]


class CopyThread:
    """Carry out copies in a thread of their own, in order.

    A copy that raises is reported as failed, and the thread goes on. If the thread itself dies, the
    copies that it had not done are reported as failed, and another thread is started.

    Args:
        work: carries out copies.
    """

    def __init__(self, work: Callable[[Copies], None]) -> None:
        self._work = work
        self._begun: deque[Copies] = deque()
        self._begin()

    def _begin(self) -> None:
        self._jobs: queue.SimpleQueue[Copies | None] = queue.SimpleQueue()
        self._ended: deque[tuple[Copies, bool]] = deque()
        self._signal = threading.Event()
        self.thread = threading.Thread(target=self._run, name="kv-copies", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (copies := self._jobs.get()) is not None:
            try:
                self._work(copies)
            except BaseException:
                log.exception("copying KV between the device and host memory failed")
                self._ended.append((copies, False))
            else:
                self._ended.append((copies, True))
            self._signal.set()

    def put(self, copies: Copies) -> None:
        """Queue copies."""
        self._begun.append(copies)
        self._jobs.put(copies)

    def ended(self, wait: float) -> list[tuple[Copies, bool]]:
        """Return the copies that ended since the last call, and whether each succeeded.

        Args:
            wait: seconds to wait for one, if none has.
        """
        alive = self.thread.is_alive()
        if wait and alive and self._begun and not self._ended:
            self._signal.wait(wait)
        self._signal.clear()
        found = []
        while self._ended:
            found.append(self._ended.popleft())
            self._begun.popleft()
        if not alive and self._begun:
            log.error("the thread that copies KV died; starting another")
            found += [(copies, False) for copies in self._begun]
            self._begun.clear()
            self._begin()
        return found

    def close(self) -> None:
        """Finish the queued copies and end the thread."""
        self._jobs.put(None)
        self.thread.join()


class HostTier:
    """Hold blocks in host memory, and copy them from and to the device.

    The memory is allocated once, pinned for a GPU. A CPU copies in a thread of its own, a GPU on
    two streams, one each way, because it has a copy engine for each: no step waits. Runs of
    neighbouring blocks are one copy.

    Attributes:
        memory: [host blocks, ...], each block in the order of `KVStore.moved`.
    """

    def __init__(self, store: KVStore, blocks: int) -> None:
        # as the device has it, block by block: one copy a block
        shape = list(store.moved.shape)
        self._store, self._gpu = store, store.moved.is_cuda
        dtype = store.moved.dtype
        self.memory = torch.zeros(blocks, *shape[1:], dtype=dtype, pin_memory=self._gpu)
        self._out: Any = torch.cuda.Stream() if self._gpu else None
        self._in: Any = torch.cuda.Stream() if self._gpu else None
        self._saves: deque[tuple[Any, list[int]]] = deque()
        self._loads: deque[tuple[Any, list[int]]] = deque()
        self._failed: list[Copies] = []
        self._copier = None if self._gpu else CopyThread(self._carry_out)

    def transfer(self, store: KVStore, copies: Copies) -> None:
        """Start copies; spills are complete, or ordered before the next step, on return."""
        self._store = store
        # a spilled block is written over by the next step: in its stream, before it
        self._move(copies.spills, store.moved, self.memory)
        if not copies.saves and not copies.loads:
            return
        if not self._gpu:
            assert self._copier is not None
            self._copier.put(Copies([], copies.saves, copies.loads))
            return
        if copies.saves:
            self._out.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._out):
                self._move(copies.saves, store.moved, self.memory)
                self._saves.append((_event(), [block for block, _ in copies.saves]))
        if copies.loads:  # what is loaded may have been saved just now, and where to, written
            self._in.wait_stream(torch.cuda.current_stream())
            self._in.wait_stream(self._out)
            with torch.cuda.stream(self._in):
                self._move(copies.loads, self.memory, store.moved)
                self._loads.append((_event(), [block for _, block in copies.loads]))

    def _move(self, pairs: list[tuple[int, int]], source: Tensor, target: Tensor) -> None:
        for begin, at, count in runs(pairs):
            target[at : at + count].copy_(source[begin : begin + count], non_blocking=self._gpu)

    @torch.inference_mode()
    def _carry_out(self, copies: Copies) -> None:
        self._move(copies.saves, self._store.moved, self.memory)
        self._move(copies.loads, self.memory, self._store.moved)

    def finished_copies(self, wait: float) -> tuple[list[int], list[int]]:
        """Return the device blocks whose saves, and those whose loads, completed since last time.

        Args:
            wait: seconds to wait for one, if none has.
        """
        if self._gpu:
            return self._finished_on_gpu(wait)
        assert self._copier is not None
        saved: list[int] = []
        loaded: list[int] = []
        for copies, succeeded in self._copier.ended(wait):
            if succeeded:
                saved += [block for block, _ in copies.saves]
                loaded += [block for _, block in copies.loads]
            else:
                self._failed.append(copies)
        return saved, loaded

    def failed_copies(self) -> list[Copies]:
        """Return the copies that failed, as `finished_copies` found out; each is reported once."""
        failed, self._failed = self._failed, []
        return failed

    def _finished_on_gpu(self, wait: float) -> tuple[list[int], list[int]]:
        if wait and (first := self._loads or self._saves):
            first[0][0].synchronize()
        return _pop_complete(self._saves), _pop_complete(self._loads)

    def synchronize(self) -> None:
        """Wait until spilled blocks can be read from host memory."""
        if self._gpu:
            torch.cuda.synchronize()

    def close(self) -> None:
        """End the thread that copies."""
        if self._copier is not None:
            self._copier.close()


def _event() -> Any:
    event = torch.cuda.Event()
    event.record()
    return event


def _pop_complete(copies: deque[tuple[Any, list[int]]]) -> list[int]:
    """Remove and return the blocks of the copies that are complete, in order."""
    done: list[int] = []
    while copies and copies[0][0].query():
        done += copies.popleft()[1]
    return done


__all__ = ["CopyThread", "HostTier", "KVStore"]
