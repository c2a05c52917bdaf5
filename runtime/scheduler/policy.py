"""The policy seam: the questions that the scheduler asks.

The scheduler keeps the books; a policy answers from them and from the time, and changes nothing.
This base class is the policy of a request-level server: every program runs, calls go in order of
arrival, and KV is kept by the cache's least-recently-used rule alone. Each policy overrides what it
is about, on one page. `runtime/scheduler/policies/registry.py` lists them by name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.events import StepReady, ToolReady
from drawloom.runtime.scheduler.program_state import ProgramState, Rank
from drawloom.runtime.scheduler.state import SchedulerState


@dataclass(frozen=True, slots=True)
class Keep:
    """Lease a conversation's KV.

    Attributes:
        ttl: seconds for which it is kept.
        value: seconds of computing that this saves.
    """

    ttl: float
    value: float


@dataclass(frozen=True, slots=True)
class MoveToHost:
    """Copy a conversation's KV to host memory.

    Attributes:
        back_after: seconds after which it is prefetched; None: when its next call starts.
    """

    back_after: float | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Free the blocks of a conversation at once."""


Retention = Keep | MoveToHost | Drop | None


@dataclass(frozen=True, slots=True)
class Grant:
    """Admit a waiting program.

    Attributes:
        program: to admit.
        reserved_tokens: KV tokens that it is promised.
        probation_calls: calls after which it is held again; 0 is never.
        expected_load: share of the engine's time that it is expected to take.
    """

    program: ProgramState
    reserved_tokens: int = 0
    probation_calls: int = 0
    expected_load: float = 0.0


@dataclass(frozen=True, slots=True)
class Recheck:
    """Ask again after `seconds`: more programs may be admitted then, though nothing happens."""

    seconds: float


@dataclass(frozen=True, slots=True)
class PauseNow:
    """Pause a program without a call at once."""


@dataclass(frozen=True, slots=True)
class PauseAfter:
    """Pause a program that makes no call for `seconds`.

    Attributes:
        seconds: from its last call's end.
        outlast_leases: but no sooner than the last lease of its KV ends.
    """

    seconds: float
    outlast_leases: bool = True


Absence = PauseNow | PauseAfter | None


class Policy:
    """Schedule as a request-level server does; subclasses override what differs.

    Attributes:
        name: under which the registry makes it.
        spill: blocks that are evicted from the device go to host memory, where there is some.
        evict_at_end: the KV of a finished conversation is freed at once.
        admits_by_env_capacity: on a limited sandbox host, no more programs run than their
            environments have slots.
        claims_early: an environment is claimed when a tool's name is decoded, or before.
        parks_envs: the environments of a paused program are parked, where its host can.
        tick_seconds: period of the clock that sets `SchedulerState.last_tick`; None for no clock.
    """

    name = "policy"
    spill = False
    evict_at_end = False
    admits_by_env_capacity = False
    claims_early = False
    parks_envs = False
    tick_seconds: float | None = None

    # --- order ----------------------------------------------------------------------------

    def agent_rank(self, state: SchedulerState, program: ProgramState) -> Rank:
        """Return the rank of a new program among the new ones of its agent.

        Asked again when the program has said more of itself: its first prompt, its declared calls.
        """
        return (float(program.index),)

    def rank(self, state: SchedulerState, program: ProgramState) -> Rank:
        """Return the rank of a waiting program among all; the least is admitted first.

        New programs of one agent must have the same order as by `agent_rank`.
        """
        return (float(program.index),)

    def max_wait(self, state: SchedulerState, program: ProgramState) -> float:
        """Return the seconds that a program may wait in all before it is due."""
        return inf

    def step_priority(
        self, state: SchedulerState, program: ProgramState, step: StepReady, now: float
    ) -> float:
        """Return the priority of an LLM call at its engine.

        Lower goes first, equal ones in order of arrival there.
        """
        return 0.0

    def tool_priority(
        self, state: SchedulerState, program: ProgramState, event: ToolReady, now: float
    ) -> float:
        """Return the priority of a tool call at its host.

        Lower goes first, equal ones in order of arrival there.
        """
        return 0.0

    # --- admission ------------------------------------------------------------------------

    def admit(self, state: SchedulerState, now: float) -> Iterable[Grant | Recheck]:
        """Yield a grant for each waiting program that may run now, and at the end a `Recheck`.

        The scheduler makes each program active before it asks for the next. Without a `Recheck`,
        it asks again after an event only.
        """
        while (program := state.wait_queue.first) is not None:
            yield self.grant(state, program)

    def grant(self, state: SchedulerState, program: ProgramState) -> Grant:
        """Return the terms on which a waiting program would be admitted now."""
        return Grant(program, self.reserve(state, program))

    def reserve(self, state: SchedulerState, program: ProgramState) -> int:
        """Return the KV tokens that a program is promised.

        Asked after each of its calls, and when its agent's history has grown.
        """
        return 0

    def would_admit(self, state: SchedulerState, program: ProgramState) -> bool:
        """Return True if a program that waits at another engine would run here at once.

        Not asked where programs wait.
        """
        return True

    # --- pausing --------------------------------------------------------------------------

    def pause(self, state: SchedulerState, now: float) -> Iterable[ProgramState]:
        """Yield the active programs to pause; each is paused before the next is asked for."""
        return ()

    def absence(self, state: SchedulerState, program: ProgramState, tools: str | None) -> Absence:
        """Return when to pause an active program that has no call; None is never.

        Args:
            state: the scheduler's.
            program: at a tool boundary.
            tools: key of the tools that its last call asked for, if that is known.
        """
        return None

    # --- KV and environments --------------------------------------------------------------

    def retain(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        """Return what happens to a conversation's KV when an LLM call has ended."""
        return None

    def retain_paused(
        self,
        state: SchedulerState,
        program: ProgramState,
        conversation: ConversationState,
        now: float,
    ) -> Retention:
        """Return what happens to the KV of a program that was just paused."""
        return None

    def warm_target(self, state: SchedulerState, env: str, now: float) -> int:
        """Return how many environments of a key to keep warm, beside those in use."""
        return 0


__all__ = [
    "Absence",
    "Drop",
    "Grant",
    "Keep",
    "MoveToHost",
    "PauseAfter",
    "PauseNow",
    "Policy",
    "Recheck",
    "Retention",
]
