"""Asking a policy changes nothing: decisions are values."""

import random
from collections.abc import Callable, Iterator

import pytest

from drawloom.runtime.scheduler import Scheduler
from drawloom.runtime.scheduler.actions import Action, ScheduleTick, StartStep
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    Decoded,
    EngineUp,
    Event,
    Expected,
    Forked,
    HostState,
    Preempted,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    Tick,
    ToolNamed,
)
from drawloom.runtime.scheduler.policies import make_policy, policy_names

from .asking import ask_everything, snapshot

KV = 1000


class Events:
    """Random events of programs with branches, tools and environments."""

    def __init__(self, seed: int) -> None:
        self.random, self.made, self.now = random.Random(seed), 0, 0.0
        self.lines: dict[str, list[str]] = {}
        self.running: dict[str, tuple[str, str]] = {}
        self.wakes: list[float] = []

    def heard(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, StartStep):
                line = action.step.partition("#")[0]
                self.running[action.step] = action.program, line
            elif isinstance(action, ScheduleTick):
                self.wakes.append(action.at)

    def __iter__(self) -> Iterator[Event]:
        yield EngineUp("e", KV, self.random.choice([0, 3 * KV]))
        for _ in range(80):
            self.now += self.random.expovariate(1.0)
            if self.wakes and min(self.wakes) <= self.now:
                self.wakes = [at for at in self.wakes if at > self.now]
                yield Tick()
            yield from self._next()

    def _next(self) -> Iterator[Event]:
        kind = self.random.random()
        if kind < 0.2 or not self.lines:
            yield from self._submit()
        elif kind < 0.75 and self.running:
            yield from self._turn()
        elif kind < 0.8 and self.running:
            step, (name, _) = self.random.choice(list(self.running.items()))
            yield Decoded("e", ((name, step, self.random.randrange(900)),))
            yield Preempted(name, step, "e")
        elif kind < 0.85:
            yield Expected(self.random.choice(list(self.lines)), self.random.randrange(9))
        elif kind < 0.9:
            yield HostState("h", "env", self.random.randrange(3), 1, 8, 2.0)
        else:
            yield from self._branch()

    def _submit(self) -> Iterator[Event]:
        self.made += 1
        name, expect = f"p{self.made}", self.random.choice([None, 5.0])
        self.lines[name] = [name]
        yield ProgramSubmitted(
            program=name,
            agent=f"agent{self.made % 3}",
            tenant=f"t{self.made % 2}",
            priority=self.made % 5 // 4,
            deadline=self.random.choice([None, self.now + 50]),
            envs=self.random.choice([(), ("env",)]),
            expect_tokens=self.random.choice([None, 300]),
            expect_steps=expect,
        )
        yield self._ready(name, name)

    def _ready(self, name: str, line: str) -> Event:
        self.made += 1
        return StepReady(
            program=name,
            conversation=line,
            step=f"{line}#{self.made}",
            state="llm/t",
            engine="e",
            prompt=self.random.randrange(1, 400),
            output=9,
        )

    def _turn(self) -> Iterator[Event]:
        step = self.random.choice(list(self.running))
        name, line = self.running.pop(step)
        if name not in self.lines or line not in self.lines[name]:
            return
        tool, size = self.random.choice("tu"), self.random.randrange(1, 500)
        yield ToolNamed(name, tool, "env")
        yield StepFinished(
            program=name,
            conversation=line,
            step=step,
            state="llm/t",
            engine="e",
            context=size,
            calls=(tool,),
            computed=size // 2,
            seconds=0.1,
            queued=0.2,
            service=self.random.random(),
        )
        if self.random.random() < 0.3:
            del self.lines[name]
            yield ProgramEnded(name)
            return
        self.now += self.random.expovariate(0.5)
        yield self._ready(name, line)

    def _branch(self) -> Iterator[Event]:
        name = self.random.choice(list(self.lines))
        if len(self.lines[name]) > 2:
            yield ConversationEnded(name, self.lines[name].pop())
            return
        self.made += 1
        child = f"{name}/{self.made}"
        yield Forked(name, name, child, "e")
        self.lines[name].append(child)
        yield self._ready(name, child)


@pytest.mark.parametrize("policy", policy_names())
def test_asking_a_policy_changes_nothing_that_it_sees(policy: str) -> None:
    for seed in range(2):
        core, events = Scheduler(make_policy(policy)), Events(seed)
        for event in events:
            events.heard(core.handle(event, events.now))
            before = snapshot(core.state)
            ask_everything(core.policy, core.state, events.now)
            assert snapshot(core.state) == before


@pytest.mark.parametrize("policy", [*policy_names(), "static-cap:2"])
def test_a_core_whose_policy_was_asked_does_what_another_does(policy: str) -> None:
    for seed in range(2):
        core, twin = Scheduler(make_policy(policy)), Scheduler(make_policy(policy))
        events = Events(seed)
        for event in events:
            actions = core.handle(event, events.now)
            assert actions == twin.handle(event, events.now)
            events.heard(actions)
            ask_everything(core.policy, core.state, events.now)


def test_a_snapshot_sees_what_a_policy_could_change() -> None:
    core = Scheduler(make_policy("fcfs-lru"))
    core.handle(EngineUp("e", KV), 0.0)
    core.handle(ProgramSubmitted("p", "agent"), 0.0)
    core.handle(
        StepReady(
            program="p", conversation="p", step="s", state="llm", engine="e", prompt=100, output=9
        ),
        0.0,
    )
    state = core.state
    program = state.programs["p"]
    changes: list[Callable[[], object]] = [
        lambda: setattr(program, "reserved_tokens", 5),
        lambda: setattr(program.conversations["p"], "lease_end", 5.0),
        lambda: state.graph("agent").durations.observe("t", 1.0),
        lambda: state.graph("agent").transitions.observe("llm", "end"),
        lambda: state.tenants.charge(program, 1.0),
        lambda: state.env_capacity.demand.update(env=1),
        lambda: state.graph("other"),
    ]
    for change in changes:
        before = snapshot(state)
        assert snapshot(state) == before
        change()
        assert snapshot(state) != before
