"""Ready environments, and the making of more, within what a host can take."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from drawloom.environments import Env
from drawloom.errors import DrawloomError, SandboxDied, SandboxError
from drawloom.ids import new_secret_id
from drawloom.sandbox.api.provider import Provider, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.pool.parked import keep, new_snapshot, remove
from drawloom.sandbox.pool.records import PoolCounters, Shelf, Warm

log = logging.getLogger("drawloom.sandbox")

_SETUP_SECONDS = 1.0  # a snapshot takes 0.15 s and more, and its disk
_MEMORY = 8  # of so many the latest are an environment's usual making time


class Stock:
    """Shelves of ready environments, one for each key, filled to targets that others set.

    Args:
        limit: most environments kept ready.
        most: most environments at all, from before one is made until it is destroyed; a ready one
            that nobody asked for gives way to one that somebody needs. None: no limit.
        on_change: hears of every move of a key's ready count.
    """

    def __init__(
        self,
        provider: Provider,
        limit: int,
        most: int | None,
        on_change: Callable[[str, int, int], None],
        clock: Callable[[], float],
    ) -> None:
        self.provider = provider
        self.limit, self.most = limit, most
        self.there = self._evicting = 0
        self.counters = PoolCounters()
        self.on_change = on_change
        self._clock = clock
        self._shelves: dict[str, Shelf] = {}
        self._queue: deque[Shelf] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._short, self._refuses = "", False

    def counts(self, key: str) -> tuple[int, int]:
        """Ready and still being made, of one key."""
        shelf = self._shelves.get(key)
        return (len(shelf.warm), shelf.creating) if shelf else (0, 0)

    def making(self, key: str) -> float:
        """Seconds that making one of a key took lately; 0 when none was made yet."""
        shelf = self._shelves.get(key)
        return shelf.cold if shelf else 0.0

    @property
    def idle(self) -> float:
        """Seconds that environments have been ready and unused so far, those that still are too."""
        ready = [warm.ready for shelf in self._shelves.values() for warm in shelf.warm]
        return self.counters.idle_seconds + sum(self._clock() - since for since in ready)

    def warm(self, env: Env, count: int) -> None:
        """Keep `count` environments ready, within the limit over all keys. Returns at once.
        `on_change` hears what came of it, also when that is nothing because there is no room."""
        shelf = self._shelf(env)
        shelf.target = count
        self._withdraw(shelf)
        self._fill(shelf)
        self._changed(shelf)
        self._fill_others()

    # --- whoever needs one -----------------------------------------------------------------

    def _shelf(self, env: Env) -> Shelf:
        return self._shelves.setdefault(env.key, Shelf(env))

    def _ready(self, shelf: Shelf) -> Warm | None:
        while shelf.warm:
            found = shelf.warm.popleft()
            if found.box.alive:
                return found
            self._track(self._destroy(found.box))
        return None

    async def _next(self, shelf: Shelf) -> Warm:
        future: asyncio.Future[Warm] = asyncio.get_running_loop().create_future()
        shelf.waiting.append(future)
        if len(shelf.waiting) > shelf.creating:
            self._spawn(shelf)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self._offer(shelf, future.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                shelf.waiting.remove(future)
            self._withdraw(shelf)

    def _withdraw(self, shelf: Shelf) -> None:
        """Nobody may want any more what has no room yet."""
        wanted = len(shelf.waiting) + max(0, shelf.target - len(shelf.warm))
        while shelf.creating > wanted and shelf in self._queue:
            self._queue.remove(shelf)
            shelf.creating -= 1

    def _offer(self, shelf: Shelf, warm: Warm) -> None:
        while shelf.waiting:
            future = shelf.waiting.popleft()
            if not future.done():
                future.set_result(warm)
                self._withdraw(shelf)
                return
        if shelf.snapshot is not None:  # whose program gave up; its snapshot is still there
            self._track(self._destroy(warm.box))
            return
        shelf.warm.append(warm)
        self._withdraw(shelf)
        self._make_room()
        self._changed(shelf)
        self._fill_others()

    def _refuse(self, shelf: Shelf, error: DrawloomError) -> None:
        """A failure goes to whoever waits; without one the target is dropped, not retried."""
        while shelf.waiting:
            future = shelf.waiting.popleft()
            if not future.done():
                future.set_exception(error)
                return
        if shelf.snapshot is not None:
            return
        shelf.target = 0
        log.warning("no warm environment of %s: %s", shelf.env.image, error)
        self._changed(shelf)
        self._fill_others()

    # --- how many are kept ready -----------------------------------------------------------

    def _fill(self, shelf: Shelf) -> None:
        """Make what its target lacks, as far as there is room. Asked anew for each: who hears of a
        change may have asked for others meanwhile."""
        while self._lacks(shelf) and self._places() and (self._room() or self._evict_unwanted()):
            self._spawn(shelf)

    def _lacks(self, shelf: Shelf) -> bool:
        return shelf.target > len(shelf.warm) + shelf.creating - len(shelf.waiting)

    def _room(self) -> bool:
        """Whether one more may be kept ready."""
        return (
            not self._short
            and sum(len(s.warm) + s.creating for s in self._shelves.values()) < self.limit
        )

    def _places(self) -> bool:
        """Whether one more may be there."""
        return self.most is None or self.there + len(self._queue) < self.most

    def _evict_unwanted(self) -> bool:
        """Give up a ready one that is beyond its key's target; whether there was one."""
        for shelf in list(self._shelves.values()):
            if len(shelf.warm) > shelf.target:
                self._discard(shelf)
                return True
        return False

    def _discard(self, shelf: Shelf, *, evicted: bool = False) -> None:
        """Destroy the ready one that has waited longest."""
        self._account(oldest := shelf.warm.popleft())
        self._track(self._destroy(oldest.box, evicted=evicted))
        self._changed(shelf)

    def _fill_others(self) -> None:
        """There may be room for what had none when it was asked for."""
        for shelf in list(self._shelves.values()):
            before = shelf.creating
            self._fill(shelf)
            if shelf.creating > before:
                self._changed(shelf)

    def _disk(self, short: str, refuses: bool) -> None:
        """The host's disk has become short, or no longer is: first nothing is kept ready, then
        nothing is made."""
        self._short, self._refuses = short, refuses
        if short:
            log.warning("%s", short)
        for shelf in self._shelves.values():
            while short and shelf.warm:
                self._discard(shelf)
        self._fill_others()

    # --- making and ending them ------------------------------------------------------------

    def _spawn(self, shelf: Shelf) -> None:
        """Make one, as soon as there is room for it."""
        shelf.creating += 1
        self._queue.append(shelf)
        self._make_room()

    def _make_room(self) -> None:
        while self._queue:
            if self.most is None or self.there < self.most:
                self.there += 1
                self._track(self._create(self._queue.popleft()))
                continue
            idle = [s for s in self._shelves.values() if s.warm and not s.waiting]
            if not idle or self._evicting:
                return
            shelf = min(idle, key=lambda s: s.warm[0].ready)
            self._evicting += 1
            self._discard(shelf, evicted=True)

    def _track(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _create(self, shelf: Shelf) -> None:
        began = self._clock()
        try:
            box = await self._make(shelf)
        except DrawloomError as error:
            shelf.creating -= 1
            self.counters.failed += 1
            self._gone()
            self._refuse(shelf, error)
            return
        except BaseException:
            shelf.creating -= 1
            self._gone()
            raise
        shelf.creating -= 1
        self.counters.created += 1
        now = self._clock()
        took = now - began
        shelf.cold = took if not shelf.cold else shelf.cold + (took - shelf.cold) / _MEMORY
        self._offer(shelf, Warm(box, now, took))

    async def _make(self, shelf: Shelf) -> LiveSandbox:
        if shelf.snapshot is not None:
            return await self.provider.fork(shelf.env, shelf.snapshot, new_secret_id("box"))
        if shelf.template is not None:
            try:
                return await self.provider.fork(shelf.env, shelf.template, new_secret_id("box"))
            except SandboxDied:  # somebody removed it
                shelf.template = None
        box = await self.provider.create(shelf.env, new_secret_id("box"))
        if box.setup_seconds >= _SETUP_SECONDS and not shelf.keeping:
            try:
                await self._keep(shelf, box)
            except asyncio.CancelledError:
                await asyncio.shield(self._end(box))
                raise
        return box

    async def _keep(self, shelf: Shelf, box: LiveSandbox) -> None:
        """Set up once: the next ones begin from what this one is, before anybody has it. Processes
        are not kept, so one whose setup left some running is no template."""
        shelf.keeping = True
        name = new_snapshot()
        keeping: asyncio.Future[Snapshot] | None = None
        try:
            if not await box.ping():
                keeping = asyncio.ensure_future(keep(self.provider, box, name))
                shelf.template = (await asyncio.shield(keeping)).id
        except SandboxError as error:
            log.warning("environments of %s are each set up anew: %s", shelf.env.image, error)
            await remove(self.provider, name)
        except asyncio.CancelledError:
            # what takes the snapshot goes on in a thread: it is waited for, then removed
            if keeping is not None:
                await asyncio.gather(keeping, return_exceptions=True)
                await asyncio.shield(remove(self.provider, name))
            raise

    async def _destroy(self, box: LiveSandbox, *, evicted: bool = False) -> None:
        try:
            await self._end(box)
        finally:
            self._evicting -= evicted
            self._gone()

    async def _end(self, box: LiveSandbox) -> None:
        try:
            await box.destroy()
            self.counters.destroyed += 1
        except SandboxError as error:
            log.warning("environment %s could not be removed: %s", box.id, error)

    def _gone(self) -> None:
        """One is no longer there; who waits for its room gets it, else targets are met again."""
        self.there -= 1
        if self._closed or self.most is None:
            return
        self._make_room()
        self._fill_others()

    def _account(self, unused: Warm) -> None:
        self.counters.idle_seconds += self._clock() - unused.ready

    def _changed(self, shelf: Shelf) -> None:
        self.on_change(shelf.env.key, len(shelf.warm), shelf.creating)

    async def _close_stock(self) -> None:
        """End the making, and give up what is ready."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shelves = list(self._shelves.values())
        self._shelves.clear()
        for shelf in shelves:
            for future in shelf.waiting:
                future.cancel()
            for warm in shelf.warm:
                self._account(warm)
        await asyncio.gather(*(self._destroy(w.box) for shelf in shelves for w in shelf.warm))
        for shelf in shelves:
            if shelf.template is not None:
                await remove(self.provider, shelf.template)


__all__ = ["Stock"]
