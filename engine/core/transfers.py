"""Copies between the device and host memory, begun and booked between two steps."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from drawloom.engine.core.batch_members import Output
from drawloom.engine.core.batch_scheduler import Batch
from drawloom.engine.core.step_plan import Runner
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.errors import EngineError

WAIT = 0.02
_MOST_FAULTS = 5

log = logging.getLogger("drawloom.engine")


class Transfers:
    """The part of an engine core that has KV copied.

    A copy that fails costs computing what it would have brought; no request fails by it.
    """

    batch: Batch

    def __init__(self, cache: KVCache, runner: Runner) -> None:
        self.cache, self._runner = cache, runner
        self._outputs: list[Output] = []
        self._faults = self._deaf = 0

    @contextmanager
    def _fault(self, what: str) -> Iterator[None]:
        """Log what fails for no request in particular: the step goes on without it.

        Raises `EngineError` when that happens again and again, with no step in between: then the
        engine is of no use, and its host must know.
        """
        try:
            yield
        except Exception as error:
            self._faults += 1
            log.exception("%s failed", what)
            if self._faults > _MOST_FAULTS:
                raise EngineError(f"{what} failed {self._faults} times: {error!r}") from error

    def _transfer(self) -> bool:
        """Begin the copies that were decided. Returns whether the next step may run: what it
        overwrites is safe, or known to be lost."""
        copies = None
        with self._fault("deciding copies between the tiers"):
            copies = self.cache.take_copies()
        if copies is None:
            return False
        self._begin(copies)
        return True

    def _begin(self, copies: Copies) -> None:
        if not copies:
            return
        try:
            self._runner.transfer(copies)
        except Exception:
            log.exception("copies between the tiers could not be begun")
            self._not_copied(copies)

    def _arrive(self, wait: float) -> None:
        if not self.cache.copies_in_flight:
            return
        self._transfer()
        saved: list[int] = []
        loaded: list[int] = []
        failed: list[Copies] = []
        try:
            saved, loaded = self._runner.arrived(wait)
            failed = self._runner.failed()
            self._deaf = 0
        except Exception as error:
            self._deaf += 1
            log.exception("what was copied between the tiers is not known")
            if self._deaf > _MOST_FAULTS:  # blocks that may still be written can serve nobody
                raise EngineError(f"the state of copies cannot be had: {error!r}") from error
        for block in saved:
            self._arrived(self.cache.finish_save, block, Copies([], [(block, -1)], []))
        for block in loaded:
            self._arrived(self.cache.finish_load, block, Copies([], [], [(-1, block)]))
        for copies in failed:
            self._not_copied(copies)

    def _arrived(self, book: Callable[[int], None], block: int, copies: Copies) -> None:
        try:
            book(block)
        except Exception:
            log.exception("the copy of block %d could not be booked", block)
            self._not_copied(copies)

    def _not_copied(self, copies: Copies) -> None:
        """Compute again the blocks that a failed copy would have brought."""
        for seq in self.cache.cancel_copies(copies):
            self.batch.take_back(seq)
        self._outputs += self.batch.take_broken()


__all__ = ["WAIT", "Transfers"]
