"""Copies of KV between the device and host memory, started and booked between two steps."""

import logging
from collections.abc import Callable

from drawloom.engine.core.batch_scheduler import Batch
from drawloom.engine.core.faults import Faults
from drawloom.engine.core.step_plan import Runner
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.errors import EngineError

POLL_SECONDS = 0.02
_MAX_POLL_FAULTS = 5

log = logging.getLogger("drawloom.engine")


class Transfers:
    """Have the runner carry out the copies that the cache decided.

    A copy that fails costs computing its block again; no request fails because of it.
    """

    def __init__(self, cache: KVCache, runner: Runner, batch: Batch, faults: Faults) -> None:
        self._cache, self._runner, self._batch, self._faults = cache, runner, batch, faults
        self._poll_faults = 0

    def start(self) -> bool:
        """Start the copies that were decided.

        Returns:
            Whether the next step may run: blocks that it overwrites are saved, or known to be lost.
        """
        copies = None
        with self._faults.tolerate("deciding copies between the tiers"):
            copies = self._cache.take_copies()
        if copies is None:
            return False
        self.run(copies)
        return True

    def run(self, copies: Copies) -> None:
        """Start these copies."""
        if not copies:
            return
        try:
            self._runner.transfer(copies)
        except Exception:
            log.exception("copies between the tiers could not be started")
            self.cancel(copies)

    def poll(self, wait: float) -> None:
        """Book the copies that are complete or failed.

        Args:
            wait: seconds to wait for one, if none is.

        Raises:
            EngineError: if the runner cannot tell, again and again: blocks that may still be
                written to are of no use.
        """
        if not self._cache.copies_in_flight:
            return
        self.start()
        saved: list[int] = []
        loaded: list[int] = []
        failed: list[Copies] = []
        try:
            saved, loaded = self._runner.finished_copies(wait)
            failed = self._runner.failed_copies()
            self._poll_faults = 0
        except Exception as error:
            self._poll_faults += 1
            log.exception("the runner cannot tell which copies are complete")
            if self._poll_faults > _MAX_POLL_FAULTS:
                raise EngineError(f"the state of copies is unknown: {error!r}") from error
        for block in saved:
            self._book(self._cache.finish_save, block, Copies([], [(block, -1)], []))
        for block in loaded:
            self._book(self._cache.finish_load, block, Copies([], [], [(-1, block)]))
        for copies in failed:
            self.cancel(copies)

    def finish(self) -> None:
        """Start the copies that were decided, and wait until none is in flight."""
        self.start()
        while self._cache.copies_in_flight:
            self.poll(POLL_SECONDS)

    def _book(self, book: Callable[[int], None], block: int, copies: Copies) -> None:
        try:
            book(block)
        except Exception:
            log.exception("the copy of block %d could not be booked", block)
            self.cancel(copies)

    def cancel(self, copies: Copies) -> None:
        """Book failed copies: sequences that waited for them compute the blocks again."""
        for seq in self._cache.cancel_copies(copies):
            self._batch.requeue(seq)


__all__ = ["POLL_SECONDS", "Transfers"]
