"""A scheduler under test, with events in a word each and a clock that the test moves."""

from typing import Any

from drawloom.runtime.scheduler import Policy, Scheduler
from drawloom.runtime.scheduler.actions import Action, Admit, LeaseKV, StartStep
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.events import (
    Decoded,
    EngineUp,
    Event,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    Tick,
)
from drawloom.runtime.scheduler.multi_engine import MultiEngineScheduler
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

KV = 1000
NEVER = -1.0  # is an engine as little busy as this: memory alone says how many programs run
MEMORY_ALONE = Parameters(busy=NEVER)


class SchedulerHarness:
    """Send events of programs to a scheduler.

    A program's first conversation has its name; its calls are ``name#0``, ``name#1`` and so on.

    Args:
        policy: a policy, or its name; ``drawloom`` looks at memory alone.
        kv: capacity of the engine ``e`` in tokens.
        host: tokens of host memory behind it.
        busy: for ``drawloom``: share of the engine's time below which memory does not matter.
        expect_tokens: what programs declare by default.
        scheduler: to be used instead of one with an engine ``e``.
    """

    def __init__(
        self,
        policy: Policy | str = "drawloom",
        kv: int = KV,
        host: int = 0,
        busy: float = NEVER,
        expect_tokens: int | None = None,
        scheduler: Scheduler | MultiEngineScheduler | None = None,
    ) -> None:
        if policy == "drawloom":
            policy = Drawloom(Parameters(busy=busy))
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.core = scheduler or Scheduler(self.policy)
        self.now = 0.0
        self.last_step = ""
        self._expect_tokens = expect_tokens
        self._steps: dict[str, int] = {}
        self._last: dict[str, str] = {}
        if scheduler is None:
            self.handle(EngineUp("e", kv, host), 0.0)

    @property
    def state(self) -> SchedulerState:
        """The books of the engine ``e``."""
        assert isinstance(self.core, Scheduler)
        return self.core.state

    @property
    def fleet(self) -> MultiEngineScheduler:
        """The scheduler of several engines."""
        assert isinstance(self.core, MultiEngineScheduler)
        return self.core

    def program(self, name: str) -> ProgramState:
        return self.state.programs[name]

    def handle(self, event: Event, now: float | None = None) -> list[Action]:
        """Send an event, at a time from which the clock goes on."""
        self.now = self.now if now is None else now
        return self.core.handle(event, self.now)

    def submit(
        self, name: str, now: float | None = None, agent: str = "agent", **options: Any
    ) -> list[Action]:
        options = {"expect_tokens": self._expect_tokens, **options}
        return self.handle(ProgramSubmitted(name, agent, **options), now)

    def ready(
        self,
        name: str,
        prompt: int = 100,
        now: float | None = None,
        conversation: str = "",
        step: str = "",
        state: str = "llm",
    ) -> list[Action]:
        """A call has its input."""
        number = self._steps[name] = self._steps.get(name, -1) + 1
        self.last_step = step or f"{name}#{number}"
        conversation = conversation or name
        self._last[conversation] = self.last_step
        return self.handle(
            StepReady(
                program=name,
                conversation=conversation,
                step=self.last_step,
                state=state,
                engine="e",
                prompt=prompt,
                output=50,
            ),
            now,
        )

    def done(
        self,
        name: str,
        context: int = 110,
        now: float | None = None,
        *calls: str,
        conversation: str = "",
        step: str = "",
        state: str = "llm",
        **more: Any,
    ) -> list[Action]:
        """The last call of a conversation has ended.

        By default it asked for ``tool``, and computed all of its context.
        """
        conversation = conversation or name
        step = step or self._last[conversation]
        more.setdefault("computed", context)
        return self.handle(
            StepFinished(
                program=name,
                conversation=conversation,
                step=step,
                state=state,
                engine="e",
                context=context,
                calls=calls or ("tool",),
                **more,
            ),
            now,
        )

    def start(self, name: str, tokens: int, now: float | None = None) -> str:
        """A new program whose first call is at the engine; returns the call."""
        self.submit(name, now)
        assert started_steps(self.ready(name, tokens, now)) == [self.last_step]
        return self.last_step

    def decoded(self, name: str, context: int, now: float | None = None) -> list[Action]:
        """The last call of a program has decoded, and has so many tokens now."""
        return self.handle(Decoded("e", ((name, self._last.get(name, f"{name}#0"), context),)), now)

    def end(self, name: str, now: float | None = None) -> list[Action]:
        return self.handle(ProgramEnded(name), now)

    def tick(self, now: float | None = None) -> list[Action]:
        return self.handle(Tick(), now)


def of_kind(actions: list[Action], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def admitted(actions: list[Action]) -> list[str]:
    return [action.program for action in actions if isinstance(action, Admit)]


def started(actions: list[Action]) -> list[str]:
    """The programs whose calls were started."""
    return [action.program for action in actions if isinstance(action, StartStep)]


def started_steps(actions: list[Action]) -> list[str]:
    return [action.step for action in actions if isinstance(action, StartStep)]


def lease_of(actions: list[Action]) -> LeaseKV:
    (lease,) = (action for action in actions if isinstance(action, LeaseKV))
    return lease


def three_fit(**options: Any) -> SchedulerHarness:
    """A harness whose programs declare so many tokens that three of them fit."""
    return SchedulerHarness(expect_tokens=300, **options)


def one_fits(policy: Policy | str = "drawloom", **options: Any) -> SchedulerHarness:
    """A harness whose programs declare so many tokens that one of them fits."""
    return SchedulerHarness(policy, expect_tokens=900, **options)


def with_costs(policy: str, kv: int = KV, host: int = 0) -> SchedulerHarness:
    """A harness whose scheduler knows the cost of a token."""
    it = SchedulerHarness(policy, kv, host)
    it.state.cost = CostModel(prefill=0.01, copy=0.0001)
    return it
