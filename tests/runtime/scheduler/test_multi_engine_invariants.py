"""Several engines under any order of events: each program is at one of them."""

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drawloom.runtime.scheduler.actions import MoveKV, ReleaseKV, StartStep
from drawloom.runtime.scheduler.events import (
    EngineDown,
    EngineDrain,
    EngineUp,
    Event,
    ProgramEnded,
    ProgramSubmitted,
    StepFailed,
    StepFinished,
    StepReady,
)
from drawloom.runtime.scheduler.multi_engine import ROUTING, MultiEngineScheduler
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.sim.presets import machine
from drawloom.runtime.sim.synthetic import generate
from drawloom.runtime.sim.workload import Mix
from tests.lanes import examples

from .harness import KV

SMALL = replace(machine("h200-8b"), kv_tokens=200_000, host_tokens=800_000)


JOBS = Mix(tuple(generate("swe", 16, seed=3)), 24, 28).draw(0, 100.0)


ENGINE = st.sampled_from(["e0", "e1", "e2"])


class FleetMachine(RuleBasedStateMachine):
    """Random programs on several engines that come and go; two fleets fed the same events must
    agree."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.made = 0.0, 0
        self.dispatcher: set[str] = set()
        self.steps: dict[str, str] = {}
        self.homes: dict[str, str] = {}
        self.up: dict[str, str] = {}

    @initialize(
        engines=st.integers(1, 3),
        policy=st.sampled_from(["drawloom", "saga", "fcfs-lru", "static-cap:2", "thunder"]),
        routing=st.sampled_from(ROUTING),
        memory=st.sampled_from([0, 5 * KV]),
    )
    def engines(self, engines: int, policy: str, routing: str, memory: int) -> None:
        self.fleet = MultiEngineScheduler(make_policy(policy), routing)
        self.twin = MultiEngineScheduler(make_policy(policy), routing)
        self.memory = memory
        for number in range(engines):
            self.comes(f"e{number}")

    @rule(engine=ENGINE)
    def comes(self, engine: str) -> None:
        self.up[engine] = "up"
        self._send(EngineUp(engine, KV, self.memory))

    @rule(engine=ENGINE)
    def drains(self, engine: str) -> None:
        if engine in self.up:
            self.up[engine] = "drains"
        self._send(EngineDrain(engine))

    @rule(engine=ENGINE)
    def fails(self, engine: str) -> None:
        self.up.pop(engine, None)
        lost = [step for step, at in self.steps.items() if at == engine]
        self.steps |= dict.fromkeys(lost, "ready")
        self.homes = {name: at for name, at in self.homes.items() if at != engine}
        self._send(EngineDown(engine))

    @rule(data=st.data())
    def given_up(self, data: Any) -> None:
        """Fail a call that was announced, and announce it anew."""
        if self.steps:
            step = data.draw(st.sampled_from(sorted(self.steps)))
            del self.steps[step]
            name, _, number = step.partition("#")
            self._send(StepFailed(name, step))
            after = f"{name}#{int(number) + 1}"
            self.steps[after] = "ready"
            self._send(
                StepReady(
                    program=name,
                    conversation=name,
                    step=after,
                    state="llm/t",
                    engine="?",
                    prompt=100,
                    output=10,
                )
            )

    def _send(self, event: Event) -> None:
        actions = self.fleet.handle(event, self.now)
        assert self.twin.handle(event, self.now) == actions
        for action in actions:
            if isinstance(action, StartStep):
                assert action.program in self.dispatcher
                assert self.steps.pop(action.step) == "ready"
                assert self.up[action.engine] == "up"
                self.steps[action.step] = action.engine
                self.homes[action.program] = action.engine
            if isinstance(action, MoveKV):
                assert action.engine != action.target
                assert self.up[action.target] == "up"
                assert self.homes.get(action.program) == action.engine, "its KV was elsewhere"
                self.homes[action.program] = action.target
            if isinstance(action, ReleaseKV):
                assert action.engine in self.up

    @rule(tokens=st.integers(1, 2000), tenant=st.sampled_from("ab"))
    def submit(self, tokens: int, tenant: str) -> None:
        self.made += 1
        name = f"p{self.made}"
        self.dispatcher.add(name)
        self._send(ProgramSubmitted(name, f"agent-{tokens % 3}", tenant, expect_tokens=tokens))
        self.steps[f"{name}#0"] = "ready"
        self._send(
            StepReady(
                program=name,
                conversation=name,
                step=f"{name}#0",
                state="llm",
                engine="?",
                prompt=tokens % 900 + 1,
                output=10,
            )
        )

    @rule(data=st.data(), seconds=st.floats(0, 10), more=st.integers(1, 300))
    def turn(self, data: Any, seconds: float, more: int) -> None:
        running = sorted(step for step, at in self.steps.items() if at != "ready")
        if not running:
            return
        step = data.draw(st.sampled_from(running))
        name, _, number = step.partition("#")
        del self.steps[step]
        self.now += seconds
        end = StepFinished(
            program=name,
            conversation=name,
            step=step,
            state="llm",
            engine="?",
            context=100 + more,
            calls=("t",),
            service=seconds,
        )
        self._send(end)
        self.now += seconds
        after = f"{name}#{int(number) + 1}"
        self.steps[after] = "ready"
        self._send(
            StepReady(
                program=name,
                conversation=name,
                step=after,
                state="llm/t",
                engine="?",
                prompt=100 + more,
                output=10,
            )
        )

    @rule(data=st.data())
    def end(self, data: Any) -> None:
        if self.dispatcher:
            name = data.draw(st.sampled_from(sorted(self.dispatcher)))
            self.dispatcher.discard(name)
            self.steps = {s: at for s, at in self.steps.items() if s.partition("#")[0] != name}
            self.homes.pop(name, None)
            self._send(ProgramEnded(name))
            self._send(ProgramEnded(name))

    @invariant()
    def a_program_is_at_one_engine(self) -> None:
        if not hasattr(self, "fleet"):
            return
        found = [name for core in self.fleet.engines.values() for name in core.state.programs]
        assert sorted(found) == sorted(self.dispatcher)
        for name, core in self.fleet.engines.items():
            assert all(self.fleet._homes[p] == name for p in core.state.programs)
            assert all(p.queue is not None for p in core.state.wait_queue.programs.values())
            sizes = [self.fleet._sizes[p] for p in core.state.programs]
            assert self.fleet._assigned[name] == sum(sizes)

    @invariant()
    def books_are_kept_at_every_engine(self) -> None:
        for core in self.fleet.engines.values() if hasattr(self, "fleet") else ():
            active = core.state.active.values()
            assert core.state.totals.tokens == sum(p.tokens for p in active)
            assert core.state.totals.private_tokens == sum(p.private_tokens for p in active)
            assert core.state.totals.reserved_tokens == sum(p.reserved_tokens for p in active)
            assert core.state.totals.computing_programs == sum(p.running_calls > 0 for p in active)
            held = core.state.wait_queue.programs.values()
            assert core.state.totals.paused_tokens == sum(
                p.private_tokens for p in held if p.was_admitted and not p.kv_lost
            )
            assert core.state.totals.running_calls == sum(p.running_calls for p in active)
            assert core.state.capacity == KV * len(core.state.engines)
            assert core.state.host_tokens == self.memory * len(core.state.engines)

    @invariant()
    def no_call_is_lost(self) -> None:
        """Each is where its program is: it runs there, or is held."""
        for core in self.fleet.engines.values() if hasattr(self, "fleet") else ():
            for program in core.state.programs.values():
                calls = {s: at for s, at in self.steps.items() if s.partition("#")[0] == program.id}
                assert set(program.pending_steps) | set(program.running_steps) == set(calls)
                assert set(program.running_steps) == {s for s, at in calls.items() if at != "ready"}
                assert sorted(calls) == sorted(
                    c for x in program.conversations.values() for c in x.open_steps
                )

    @invariant()
    def engines_are_known_while_they_are_up_or_somebody_waits_for_one(self) -> None:
        if hasattr(self, "fleet"):
            states = {name: core.state for name, core in self.fleet.engines.items()}
            assert {name for name, state in states.items() if state.engines} == set(self.up)
            assert {n for n, w in states.items() if n in w.draining} == {
                name for name, how in self.up.items() if how == "drains"
            }
            if "up" in self.up.values():
                assert set(states) == set(self.up)
                assert self.running_somewhere()

    def running_somewhere(self) -> bool:
        """Whether programs run, if there are any; who has a clock may wait for it."""
        cores = self.fleet.engines.values()
        if self.fleet.policy.tick_seconds is not None:
            return True
        return not self.dispatcher or any(core.state.active for core in cores)


FleetMachine.TestCase.settings = settings(
    max_examples=examples(60), stateful_step_count=40, deadline=None
)


TestFleet = FleetMachine.TestCase
