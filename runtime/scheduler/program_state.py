"""Programs as the scheduler sees them, and their phases."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from math import inf

from drawloom.graph.execution_graph import Position
from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.events import ProgramSubmitted, StepReady

Rank = tuple[float, ...]
_TRAIL = 64  # forecasts that are kept of a program
_CHANGE = 0.5  # calls; declarations that differ by less are the same


class Phase(Enum):
    """Name the phases of a program.

    `SchedulerState.transition` is the only way from one to another.

    Attributes:
        NEW: waits for its first admission.
        ACTIVE: its calls go to the engine.
        PAUSED: was active; its calls wait until it is admitted again.
        ENDED: is over.
    """

    NEW = "new"
    ACTIVE = "active"
    PAUSED = "paused"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class ProgramState:
    """Keep what the scheduler knows of a program, from submission to end.

    Attributes:
        submission: the event that submitted it.
        index: its number in order of arrival.
        submitted_at: time of its submission.
        phase: new, active, paused or ended.
        peak: the most private tokens that it had.
        tokens: context tokens of its conversations.
        private_tokens: those of them that no other program has as well.
        reserved_tokens: KV tokens that it is promised.
        steps: LLM calls that have ended.
        tool_waits: conversations that wait for a tool.
        service: seconds that its calls have had at the engine.
        probation_calls: calls after which it is held again, since it was admitted as a probe; 0 if
            it was admitted for good.
        size_known_at: calls and service that it had had when its size became known, since it began
            branches or declared anew what is to come; None before.
        waiting_since: when it began to wait for admission; a paused program without a call begins
            with its next call.
        last_call_end: when its last call ended.
        absent_at: when it will be paused for absence, unless it makes a call before.
        expected_load: the share of the engine's time that it was admitted for.
        admitted_at: time of its first admission.
        pending_steps: calls that wait for admission, by name.
        running_steps: calls at the engine, by name.
        pause_pending: it is to be paused at its next tool boundary.
        lease_end: when the last lease of its KV ends.
        kv_lost: its KV went with its engine, and has to be computed again.
        agent_rank: its rank among the new programs of its agent.
        env_host: the sandbox host that has capacity for its environments; None before it is
            admitted, and where no host is limited.
        queue: the wait queue that it is in; None while it is in none.
        rank_version: how often it was ranked; earlier ranks are stale.
        has_called: it has made a call.
        admitted_overdue: it was admitted because it was due.
        waited_seconds: seconds that it waited in all, with a call or before its first.
        last_tool_seconds: seconds that its last tools took.
        due_at: when it becomes due, if it waits.
        declaration_raises: how often it declared more calls than before.
        declared_calls: LLM calls in all, by its last declaration; None if it declared none.
        declared_at_start: the same, by its last declaration before its first call.
        trail: service so far and service expected to follow, at the end of each call, or of one in
            `trail_stride`.
        growth_threshold: the least context at which a running call changes the books.
        conversations: by name.
        envs: keys of the environments that it has claimed.
    """

    submission: ProgramSubmitted
    index: int
    submitted_at: float
    phase: Phase = Phase.NEW
    peak: int = 0
    tokens: int = 0
    private_tokens: int = 0
    reserved_tokens: int = 0
    steps: int = 0
    tool_waits: int = 0
    service: float = 0.0
    probation_calls: int = 0
    size_known_at: tuple[int, float] | None = None
    waiting_since: float = 0.0
    last_call_end: float = 0.0
    absent_at: float = inf
    expected_load: float = 0.0
    admitted_at: float = 0.0
    pending_steps: dict[str, StepReady] = field(default_factory=dict)
    running_steps: dict[str, StepReady] = field(default_factory=dict)
    pause_pending: bool = False
    lease_end: float = 0.0
    kv_lost: bool = False
    agent_rank: Rank = ()
    env_host: str | None = None
    queue: object | None = None
    rank_version: int = 0
    has_called: bool = False
    admitted_overdue: bool = False
    waited_seconds: float = 0.0
    last_tool_seconds: float = 0.0
    due_at: float = inf
    declaration_raises: int = 0
    declared_calls: float | None = None
    declared_at_start: float | None = None
    trail: tuple[tuple[float, float], ...] = ()
    trail_stride: int = 1
    growth_threshold: float = inf
    conversations: dict[str, ConversationState] = field(default_factory=dict)
    envs: frozenset[str] = frozenset()
    _positions: dict[Position, int] | None = None

    @property
    def id(self) -> str:
        """Return the program's name."""
        return self.submission.program

    @property
    def active(self) -> bool:
        """Return True while its calls go to the engine."""
        return self.phase is Phase.ACTIVE

    @property
    def was_admitted(self) -> bool:
        """Return True from its first admission on."""
        return self.phase is not Phase.NEW

    @property
    def running_calls(self) -> int:
        """Return the number of its calls at the engine."""
        return len(self.running_steps)

    @property
    def at_tool_boundary(self) -> bool:
        """Return True while none of its calls is at the engine or on its way there."""
        return not self.running_steps and not self.pending_steps

    @property
    def quiescent(self) -> bool:
        """Return True while it has no call at an engine, and no conversation waits for a tool."""
        return not self.running_steps and not self.tool_waits

    @property
    def wants_admission(self) -> bool:
        """Return True if it has something to run once it is admitted."""
        return not self.was_admitted or bool(self.pending_steps)

    def lacks_env(self, env: str) -> bool:
        """Return True if it may still ask for an environment of this key."""
        return env in self.submission.envs and env not in self.envs

    # --- conversations --------------------------------------------------------------------

    @property
    def positions(self) -> Mapping[Position, int]:
        """Return the number of its conversations at each position of the execution graph."""
        if self._positions is None:
            return {one.position: 1 for one in self.conversations.values()}
        return self._positions

    def add_conversation(self, conversation: ConversationState) -> None:
        """Add a conversation."""
        self.conversations[conversation.id] = conversation
        if self._positions is None and len(self.conversations) > 1:
            self._positions = {}
            for other in self.conversations.values():
                self._positions[other.position] = self._positions.get(other.position, 0) + 1
            self.tool_waits += conversation.pending_tools is not None
        else:
            self._count(conversation)

    def remove_conversation(self, name: str) -> ConversationState | None:
        """Remove a conversation and return it; None if there is none of this name."""
        conversation = self.conversations.pop(name, None)
        if conversation is not None:
            self._uncount(conversation)
        return conversation

    @contextmanager
    def moving(self, conversation: ConversationState) -> Iterator[None]:
        """Let the block change a conversation's position, and keep the counts right."""
        self._uncount(conversation)
        yield
        self._count(conversation)

    def _count(self, conversation: ConversationState) -> None:
        self.tool_waits += conversation.pending_tools is not None
        if self._positions is not None:
            position = conversation.position
            self._positions[position] = self._positions.get(position, 0) + 1

    def _uncount(self, conversation: ConversationState) -> None:
        self.tool_waits -= conversation.pending_tools is not None
        if self._positions is not None:
            position = conversation.position
            self._positions[position] -= 1
            if not self._positions[position]:
                del self._positions[position]

    # --- what it says of itself -----------------------------------------------------------

    def record_forecast(self, service_left: Callable[[], float | None]) -> None:
        """Record, at the end of a call, the service that is expected to follow.

        Of a program of many calls only some are recorded, at growing distances.

        Args:
            service_left: returns the expected seconds; None when nothing is known.
        """
        if self.steps % self.trail_stride:
            return
        self.trail += ((self.service, service_left() or 0.0),)
        if len(self.trail) >= _TRAIL:
            self.trail, self.trail_stride = self.trail[1::2], 2 * self.trail_stride

    def declare_remaining(self, calls: float | None) -> None:
        """Take in a declaration of how many LLM calls are to come; None is no declaration."""
        if calls is None:
            return
        total = self.steps + calls
        raised = self.declared_calls is not None and total > self.declared_calls + _CHANGE
        self.declaration_raises += raised
        self.declared_calls = total
        self.reveal_size()
        if not self.steps:
            self.declared_at_start = self.declared_calls

    def reveal_size(self) -> None:
        """Note that its size is known from now on; before its first call has ended it is not."""
        if self.steps and self.size_known_at is None:
            self.size_known_at = self.steps, self.service

    @property
    def declaration_growth(self) -> float | None:
        """Return its last declaration over its first; None if it declared none before its start."""
        if not self.declared_at_start or self.declared_calls is None:
            return None
        return self.declared_calls / self.declared_at_start


__all__ = ["Phase", "ProgramState", "Rank"]
