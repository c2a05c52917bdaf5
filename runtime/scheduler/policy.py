"""What a policy decides.

The core keeps the books and asks; a policy answers from the state and the time. This base class
is the policy of a request-level server: everybody runs, calls go in order of arrival, nothing is
kept but by the cache's own least-recently-used rule. Each policy overrides what it is about, on
one page. `runtime/scheduler/policies/registry.py` knows them by name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from drawloom.runtime.scheduler.events import StepReady, ToolReady
from drawloom.runtime.scheduler.program_state import ConversationState, ProgramState, Rank
from drawloom.runtime.scheduler.state import SchedulerState


@dataclass(frozen=True, slots=True)
class Keep:
    """Lease a conversation's KV for `ttl` seconds; `value` is the seconds that it saves."""

    ttl: float
    value: float


@dataclass(frozen=True, slots=True)
class Demote:
    """Copy it to host memory, and bring it back `back` seconds from now; None: when it returns."""

    back: float | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Free its blocks at once."""


Retention = Keep | Demote | Drop | None


class Policy:
    """Request-level scheduling; what the others override.

    Attributes:
        spill: whether what is evicted from the device goes to host memory, where there is some.
        evict_at_end: whether the KV of what has ended is freed at once.
        claim_early: whether an environment is claimed when a tool's name is decoded, or before.
        houses: whether it admits no more programs than their environments have room on a limited
            host.
        parks: whether the environments of a paused program are put aside, where its host can.
        period: seconds between calls of `tick`; None for no clock.
    """

    name = "policy"
    spill = False
    evict_at_end = False
    claim_early = False
    houses = False
    parks = False
    period: float | None = None

    def order(self, state: SchedulerState, program: ProgramState) -> Rank:
        """The order of an agent's new programs, asked for again when a program has said more of
        itself: its first prompt, the calls it expects."""
        return (float(program.index),)

    def rank(self, state: SchedulerState, program: ProgramState) -> Rank:
        """The order of held programs of all agents; the least is admitted first. Of new programs
        of one agent it must say what `order` says."""
        return (float(program.index),)

    def admit(self, state: SchedulerState, now: float) -> Iterable[ProgramState]:
        """The held programs that may run now. The core makes each active before it asks on."""
        while (program := state.wait_queue.first) is not None:
            yield program

    def takes(self, state: SchedulerState, program: ProgramState) -> bool:
        """Whether a program that another engine holds would run here at once. Where nobody is held
        back this is not asked."""
        return True

    def look(self, state: SchedulerState, program: ProgramState) -> int:
        """Return after how many calls a program about to run is held again; 0 is never."""
        return 0

    def due(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the seconds for which a program may be held before it is due."""
        return inf

    def absent(
        self, state: SchedulerState, program: ProgramState, tools: str | None
    ) -> float | None:
        """Return after how many seconds without a call a program is held, whose last call asked
        for `tools`, if that is known; None is never."""
        return None

    def again(self, state: SchedulerState) -> float | None:
        """Return after how many seconds more programs may be admitted if nothing happens before;
        None if that does not depend on time."""
        return None

    def adds(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the share of the engine's time that a program about to run will take."""
        return 0.0

    def reserve(self, state: SchedulerState, program: ProgramState) -> int:
        """The KV tokens that a program is promised. Asked when it becomes active, after each of
        its calls, and when its agent's history has grown."""
        return 0

    def pause(self, state: SchedulerState, now: float) -> Iterable[ProgramState]:
        """The active programs whose next calls are held from now on; each is before the next is
        asked for."""
        return ()

    def paused(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        """What happens to the KV of a program that was just paused."""
        return None

    def priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        """Of an LLM call at the engine; lower goes first, equals in order of arrival there."""
        return 0.0

    def tool(
        self, state: SchedulerState, program: ProgramState, event: ToolReady, now: float
    ) -> float:
        """The priority of a tool call at its host; lower goes first, equals by arrival there."""
        return 0.0

    def retain(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        """What happens to a conversation's KV when an LLM call has ended."""
        return None

    def tick(self, state: SchedulerState, now: float) -> None:
        """Every `period` seconds, before `pause` and `admit` are asked."""

    def warm(self, state: SchedulerState, env: str, now: float) -> int:
        """How many environments of a key to keep ready, beside those in use."""
        return 0


__all__ = ["Demote", "Drop", "Keep", "Policy", "Retention"]
