"""A program and its conversations, as the scheduler sees them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from drawloom.events import ProgramSubmitted, StepReady
from drawloom.graph.execution import START
from drawloom.graph.forecast import Forecast

Rank = tuple[float, ...]
_MORE = 0.5  # calls; by less, a declaration is the same


@dataclass(slots=True)
class Lineage:
    """A conversation, forked off its `parent` if that goes on, and itself `forked` since its last
    call. `waiting` names the tools it waits for, `since` when it began to, `forecast` what was
    expected then; it is leased `until` then. Its last call had `prompt` tokens. Of its `context`,
    the first `shared` tokens are in the cache for others as well."""

    id: str
    engine: str
    state: str = START
    parent: str = ""
    context: int = 0
    prompt: int = 0
    forked: bool = False
    shared: int = 0
    waiting: str | None = None
    forecast: Forecast | None = None
    since: float = 0.0
    until: float = 0.0

    @property
    def own(self) -> int:
        """Tokens that it has for itself; none before its first call, whatever it goes on from."""
        return max(0, self.context - self.shared)


@dataclass(slots=True, eq=False)
class Program:
    """A program from submission to end.

    Attributes:
        active: its calls go to the engine; else they are held, before admission or while paused.
        begun: it was active at some time.
        tokens: of all its live conversations.
        own: of these, those that no other program has as well.
        claim: KV tokens that its admission reserved.
        ready: calls that are held.
        running: calls at the engine.
        started: these, and the conversation of each.
        service: seconds that its calls have had there.
        trial: calls after which it is held again, as it was admitted before its turn; 0 is never.
        since: when it became held, or ran out of calls.
        admitted: when it first became active.
        shown: calls and service that it had had when it showed how large it is: began branches, or
            declared anew what is to come.
        marked: to be paused as soon as it is at a tool boundary.
        order: its place among its agent's new programs.
        host: where it has room for its environments, from its first call on.
        offer: how often it was ranked among the held; the last rank counts.
        late: it was admitted because it had been held for too long.
        held: seconds for which it was held in all, with a call or before its first.
        gap: seconds that its last tools took.
        due: when it will have been held for too long, if it is held now.
        raises: how often it declared more calls to come than it had said.
        expected: LLM calls in all, by what it declared last; None if it did not.
        said: the same, by what it declared before its first call.
        trail: at the end of each call, the service so far and the service that was expected to
            follow it.
    """

    about: ProgramSubmitted
    index: int
    submitted: float
    active: bool = False
    begun: bool = False
    peak: int = 0
    tokens: int = 0
    own: int = 0
    claim: int = 0
    running: int = 0
    steps: int = 0
    service: float = 0.0
    trial: int = 0
    shown: tuple[int, float] | None = None
    since: float = 0.0
    admitted: float = 0.0
    ready: list[StepReady] = field(default_factory=list)
    started: dict[str, str] = field(default_factory=dict)
    marked: bool = False
    order: Rank = ()
    host: str | None = None
    offer: int = 0
    late: bool = False
    held: float = 0.0
    gap: float = 0.0
    due: float = inf
    raises: int = 0
    expected: float | None = None
    said: float | None = None
    trail: list[tuple[float, float]] = field(default_factory=list)
    lineages: dict[str, Lineage] = field(default_factory=dict)
    envs: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        return self.about.program

    @property
    def acting(self) -> bool:
        """Whether none of its calls is at the engine or on its way there: a tool boundary."""
        return not self.running and not self.ready

    @property
    def idle(self) -> bool:
        """Whether it has nothing at an engine, and no conversation waits for a tool."""
        return not self.running and all(line.waiting is None for line in self.lineages.values())

    @property
    def places(self) -> Iterator[tuple[str, bool, bool]]:
        """The states of its conversations, whether the call there has ended, and whether what
        branches off there is there."""
        lines = self.lineages.values()
        return ((line.state, line.waiting is not None, line.forked) for line in lines)

    def say(self, calls: float | None) -> None:
        """It declares how many calls are to come."""
        if calls is None:
            return
        total = self.steps + calls
        self.raises += self.expected is not None and total > self.expected + _MORE
        self.expected = total
        self.show()
        if not self.steps:
            self.said = self.expected

    def show(self) -> None:
        """It is seen how large it is, unless it was before. Its first call shows nothing."""
        if self.steps and self.shown is None:
            self.shown = self.steps, self.service

    @property
    def outgrew(self) -> float | None:
        """How many times the calls that it declared at first it declared last."""
        return self.expected / self.said if self.said and self.expected is not None else None

    @property
    def competes(self) -> bool:
        """Whether it could use a place: it is new, or has a call to make."""
        return not self.begun or bool(self.ready)

    def lacks(self, env: str) -> bool:
        """Whether it may still ask for an environment of this key."""
        return env in self.about.envs and env not in self.envs


__all__ = ["Lineage", "Program", "Rank"]
