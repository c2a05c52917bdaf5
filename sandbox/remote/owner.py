"""A runtime as a sandbox host sees it."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from drawloom.sandbox.base import Provider
from drawloom.sandbox.live import LiveSandbox


@dataclass(slots=True)
class Job:
    """One numbered request: `answer` is set when it was carried out."""

    task: "asyncio.Task[None]"
    reply_to: str
    correlation: bytes
    answer: bytes | None = None


@dataclass(slots=True)
class Owner:
    """A runtime, and what it has here."""

    name: str
    online: bool = False
    offline: float = 0.0
    epoch: int = -1
    term: int = -1
    low: int = 0
    until: float = 0.0
    settled: set[int] = field(default_factory=set)
    jobs: dict[int, Job] = field(default_factory=dict)
    boxes: dict[str, LiveSandbox] = field(default_factory=dict)
    making: dict[str, "asyncio.Task[Any]"] = field(default_factory=dict)
    leaving: set["asyncio.Task[None]"] = field(default_factory=set)
    sent: dict[int, float] = field(default_factory=dict)
    ended: int = 0
    ending: "asyncio.Task[None] | None" = None
    provider: "asyncio.Task[Provider] | None" = None

    def settle(self, low: int, settled: list[int]) -> None:
        """The runtime has these answers; they will not be asked for again."""
        self.low = max(self.low, low)
        self.settled.update(settled)
        self.settled = {n for n in self.settled if n >= self.low}
        for number in [n for n in self.jobs if n < self.low or n in self.settled]:
            self.leave(self.jobs.pop(number))

    def leave(self, job: Job) -> None:
        """Nobody waits for this any more; what it started goes on, and is kept by its key."""
        if job.answer is None:
            job.task.cancel()
            self.leaving.add(job.task)
            job.task.add_done_callback(self.leaving.discard)


__all__ = ["Job", "Owner"]
