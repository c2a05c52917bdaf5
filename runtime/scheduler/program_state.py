"""A program and its conversations, as the scheduler sees them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from drawloom.graph.execution_graph import Position
from drawloom.graph.forecast import Forecast
from drawloom.graph.transition_model import START
from drawloom.runtime.scheduler.branches import Branches
from drawloom.runtime.scheduler.events import ProgramSubmitted, StepReady

Rank = tuple[float, ...]
_TRAIL = 64
_MORE = 0.5  # calls; by less, a declaration is the same


@dataclass(slots=True, eq=False)
class ConversationState:
    """A conversation.

    Attributes:
        state: where it is in its agent's graph.
        context: its tokens; of these, the first `shared` are in the cache for others as well.
        prompt: tokens of its last call's prompt.
        forked: whether it was forked since its last call.
        calls: its calls that are held, or at the engine.
        waiting: the tools that it waits for; `since` when, with what `forecast`.
        until: when its lease ends.
        siblings: the group of branches that it is one of, if it was forked off one that goes on.
        branches: those that were forked off it.
    """

    id: str
    engine: str
    state: str = START
    context: int = 0
    prompt: int = 0
    forked: bool = False
    shared: int = 0
    calls: tuple[str, ...] = ()
    waiting: str | None = None
    forecast: Forecast | None = None
    since: float = 0.0
    until: float = 0.0
    siblings: Branches | None = None
    branches: Branches | None = None

    @property
    def private_tokens(self) -> int:
        """Tokens that it has for itself; none before its first call, whatever it goes on from."""
        return max(0, self.context - self.shared)

    @property
    def place(self) -> Position:
        """Its state, whether the call there has ended, and whether what branches off is there."""
        return Position(self.state, self.waiting is not None, self.forked)


@dataclass(slots=True, eq=False)
class ProgramState:
    """A program from submission to end.

    Attributes:
        active: its calls go to the engine; else they are held, before admission or while paused.
        begun: it was active at some time.
        tokens: of all its live conversations.
        own: of these, those that no other program has as well.
        claim: KV tokens that its admission reserved.
        ready: calls that are held, by name.
        running: calls at the engine.
        started: these calls, by name.
        waits: conversations that wait for a tool.
        service: seconds that its calls have had there.
        trial: calls after which it is held again, as it was admitted before its turn; 0 is never.
        held_since: when it began to be held, or to wait for a place with a call if it was held
            without any.
        called_until: when its last call ended.
        absent_at: when it is held if it has made no call until then.
        adds: the share of the engine's time that it was admitted for.
        admitted: when it first became active.
        shown: calls and service that it had had when it showed how large it is: began branches, or
            declared anew what is to come.
        marked: to be paused as soon as it is at a tool boundary.
        until: when the last lease of its KV ends.
        lost: its KV went with its engine, and has to be computed again; until it is active.
        order: its place among its agent's new programs.
        host: where it has room for its environments, from its first call on.
        lane: where it is held.
        offer: how often it was ranked among the held; the last rank counts.
        called: it has made a call.
        late: it was admitted because it had been held for too long.
        held: seconds for which it was held in all, with a call or before its first.
        gap: seconds that its last tools took.
        due: when it will have been held for too long, if it is held now.
        raises: how often it declared more calls to come than it had said.
        expected: LLM calls in all, by what it declared last; None if it did not.
        said: the same, by what it declared before its first call.
        trail: at the end of each call, or of one in `stride`, the service so far and the service
            that was expected to follow it.
        notice: the least context of a running call that says what is not counted yet.
    """

    submission: ProgramSubmitted
    index: int
    submitted_at: float
    active: bool = False
    begun: bool = False
    peak: int = 0
    tokens: int = 0
    private_tokens: int = 0
    reserved_tokens: int = 0
    running: int = 0
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
    until: float = 0.0
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
    raises: int = 0
    declared_calls: float | None = None
    declared_at_start: float | None = None
    trail: tuple[tuple[float, float], ...] = ()
    trail_stride: int = 1
    growth_threshold: float = inf
    conversations: dict[str, ConversationState] = field(default_factory=dict)
    envs: frozenset[str] = frozenset()
    _spots: dict[Position, int] | None = None

    @property
    def id(self) -> str:
        return self.submission.program

    @property
    def at_tool_boundary(self) -> bool:
        """Whether none of its calls is at the engine or on its way there: a tool boundary."""
        return not self.running and not self.pending_steps

    @property
    def quiescent(self) -> bool:
        """Whether it has nothing at an engine, and no conversation waits for a tool."""
        return not self.running and not self.tool_waits

    @property
    def conversation_states(self) -> Mapping[Position, int]:
        """How many of its conversations are in each place."""
        if self._spots is None:
            return {line.place: 1 for line in self.conversations.values()}
        return self._spots

    # --- its conversations: whoever changes one takes it out, and puts it back ------------

    def join(self, line: ConversationState) -> None:
        """Add a conversation."""
        self.conversations[line.id] = line
        if self._spots is None and len(self.conversations) > 1:
            self._spots = {}
            for other in self.conversations.values():
                self._spots[other.place] = self._spots.get(other.place, 0) + 1
            self.tool_waits += line.waiting is not None
        else:
            self.put(line)

    def put(self, line: ConversationState) -> None:
        """Count a conversation where it is now."""
        self.tool_waits += line.waiting is not None
        if self._spots is not None:
            self._spots[line.place] = self._spots.get(line.place, 0) + 1

    def take(self, line: ConversationState) -> None:
        """Do not count a conversation where it was."""
        self.tool_waits -= line.waiting is not None
        if self._spots is not None:
            self._spots[line.place] -= 1
            if not self._spots[line.place]:
                del self._spots[line.place]

    def note(self, left: Callable[[], float | None]) -> None:
        """Note, at the end of a call, what is expected to follow it. Of many calls only some are
        noted, as far apart as it takes to keep them few."""
        if self.steps % self.trail_stride:
            return
        self.trail += ((self.service, left() or 0.0),)
        if len(self.trail) >= _TRAIL:
            self.trail, self.trail_stride = self.trail[1::2], 2 * self.trail_stride

    def declare_remaining(self, calls: float | None) -> None:
        """It declares how many calls are to come."""
        if calls is None:
            return
        total = self.steps + calls
        self.raises += self.declared_calls is not None and total > self.declared_calls + _MORE
        self.declared_calls = total
        self.reveal_size()
        if not self.steps:
            self.declared_at_start = self.declared_calls

    def reveal_size(self) -> None:
        """It is seen how large it is, unless it was before. Its first call shows nothing."""
        if self.steps and self.size_known_at is None:
            self.size_known_at = self.steps, self.service

    @property
    def declaration_growth(self) -> float | None:
        """How many times the calls that it declared at first it declared last."""
        return (
            self.declared_calls / self.declared_at_start
            if self.declared_at_start and self.declared_calls is not None
            else None
        )

    @property
    def wants_admission(self) -> bool:
        """Whether it could use a place: it is new, or has a call to make."""
        return not self.begun or bool(self.pending_steps)

    def lacks_env(self, env: str) -> bool:
        """Whether it may still ask for an environment of this key."""
        return env in self.submission.envs and env not in self.envs


__all__ = ["ConversationState", "ProgramState", "Rank"]
