"""Runner without a model whose blocks are tensors, moved by the real copies.

`MockRunner` keeps its blocks in dictionaries. This one has the `KVStore` and the `HostTier` of a
CPU, so that a test of the core shows the effects of the order of copies. Only the copy thread is
replaced, by one that copies as early or as late as permitted.
"""

from collections import deque
from typing import Any

import torch

from drawloom.engine.config import ModelConfig
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.kv_memory import CopyThread, HostTier, KVStore
from drawloom.engine.runners.mock_runner import MockRunner, Script

_SPEC = ModelConfig(
    "llama",
    vocab_size=1,
    hidden_size=1,
    layers=1,
    heads=1,
    kv_heads=1,
    head_dim=1,
    intermediate_size=1,
    max_position=1,
)
_GARBAGE = 1 << 40


class Slots:
    """Keep tokens by KV slot in a store's tensor, as a dictionary for `MockRunner`."""

    def __init__(self, store: KVStore, size: int) -> None:
        self._tokens, self._size = store.tensor[:, 0, 0, :, 0, 0].numpy(), size

    def __setitem__(self, slot: int, token: int) -> None:
        self._tokens[divmod(slot, self._size)] = token + 1

    def __getitem__(self, slot: int) -> int:
        return int(self._tokens[divmod(slot, self._size)]) - 1

    def __contains__(self, slot: int) -> bool:
        return self[slot] >= 0

    def get(self, slot: int) -> int | None:
        token = self[slot]
        return None if token < 0 else token

    def clear(self) -> None:
        self._tokens[:] = 0


class SteppedCopies(CopyThread):
    """Copy at once (`early`), or after `ended` was called `delay` times.

    Attributes:
        failing: number of the next copies that fail, leaving garbage at their targets.
    """

    def __init__(self, tier: HostTier, delay: int, early: bool) -> None:
        self._tier, self._delay, self._early = tier, delay, early
        self._waiting: deque[tuple[int, Copies, bool]] = deque()
        self._asked = self.failing = 0

    def put(self, copies: Copies) -> None:
        succeeds = not self.failing
        self.failing = max(0, self.failing - 1)
        self._waiting.append((self._asked + self._delay, copies, succeeds))
        if self._early:
            self._copy(copies, succeeds)

    def _copy(self, copies: Copies, succeeds: bool) -> None:
        if succeeds:
            self._tier._carry_out(copies)
            return
        for _, host in copies.saves:
            self._tier.memory[host] = _GARBAGE
        for _, block in copies.loads:
            self._tier._store.moved[block] = _GARBAGE

    def ended(self, wait: float) -> list[tuple[Copies, bool]]:
        self._asked += 1
        found: list[tuple[Copies, bool]] = []
        while self._waiting and (wait or self._waiting[0][0] < self._asked):
            _, copies, succeeds = self._waiting.popleft()
            if not self._early:
                self._copy(copies, succeeds)
            found.append((copies, succeeds))
        return found

    def close(self) -> None: ...


class TensorRunner(MockRunner):
    """Check each step as `MockRunner` does, over a `KVStore` and a host tier.

    Args:
        blocks: KV blocks of the store.
        host_blocks: KV blocks of the host tier; 0 is none.
        paged: lay the blocks out in memory as on a GPU.
        early: make copies when they begin, not when they are reported.
    """

    def __init__(
        self,
        script: Script,
        block_size: int,
        blocks: int,
        host_blocks: int,
        *,
        window: int = 0,
        delay: int = 0,
        async_launch: bool = False,
        paged: bool = False,
        early: bool = False,
    ) -> None:
        super().__init__(script, block_size, window=window, delay=delay, async_launch=async_launch)
        cpu = torch.device("cpu")
        self.store = KVStore(_SPEC, blocks, block_size, cpu, torch.int64, paged)
        self._device: Any = Slots(self.store, block_size)
        self.tier: HostTier | None = None
        if host_blocks:
            self.tier = HostTier(self.store, host_blocks)
            self.tier.close()
            self.copies = self.tier._copier = SteppedCopies(self.tier, delay, early)

    def transfer(self, copies: Copies) -> None:
        assert not self.asleep and self.tier is not None
        self.tier.transfer(self.store, copies)

    def finished_copies(self, wait: float = 0.0) -> tuple[list[int], list[int]]:
        return self.tier.finished_copies(wait) if self.tier is not None else ([], [])

    def failed_copies(self) -> list[Copies]:
        return self.tier.failed_copies() if self.tier is not None else []

    def read(self, blocks: list[tuple[int, int]]) -> Any:
        def content(block: int, host: int) -> torch.Tensor:
            if block >= 0:
                return self.store.tensor[block]
            assert self.tier is not None
            return self.store.seen(self.tier.memory[host])

        shape = self.store.tensor.shape[1:]
        parts = [content(*one).clone() for one in blocks]
        return torch.stack(parts) if parts else torch.empty(0, *shape, dtype=torch.int64)

    def write(self, blocks: list[int], data: Any) -> None:
        for block, content in zip(blocks, data, strict=False):
            self.store.tensor[block] = content


__all__ = ["SteppedCopies", "TensorRunner"]
