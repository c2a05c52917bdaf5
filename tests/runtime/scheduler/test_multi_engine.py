"""Several engines: a program is at one of them at a time, moves with its KV, and none idles while
another holds programs back."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drawloom.errors import ConfigError, EngineError
from drawloom.runtime.scheduler.actions import Action, Admit, MoveKV, ReleaseKV, StartStep
from drawloom.runtime.scheduler.events import (
    Decoded,
    EngineDown,
    EngineDrain,
    EngineUp,
    Event,
    ProgramEnded,
    ProgramSubmitted,
    StepFailed,
    StepFinished,
    StepReady,
    TenantShare,
)
from drawloom.runtime.scheduler.multi_engine import ROUTING, MultiEngineScheduler
from drawloom.runtime.scheduler.policies import make_policy, policy_names
from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.state import Totals
from drawloom.runtime.sim.experiment import Scenario, compare
from drawloom.runtime.sim.presets import machine
from drawloom.runtime.sim.sim_program import Outcome
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.synthetic import generate
from drawloom.runtime.sim.workload import Mix
from tests.lanes import examples, slow_unless

SMALL = replace(machine("h200-8b"), kv_tokens=200_000, host_tokens=800_000)
JOBS = Mix(tuple(generate("swe", 16, seed=3)), 24, 28).draw(0, 100.0)
KV = 1000
ENGINE = st.sampled_from(["e0", "e1", "e2"])


@cache
def _run(policy: str, routing: str = "affine", replicas: int = 3) -> tuple[Simulation, Outcome]:
    simulation = Simulation(
        SMALL, make_policy(policy), JOBS, True, replicas=replicas, routing=routing
    )
    return simulation, simulation.run()


@pytest.mark.parametrize("routing", slow_unless(ROUTING, ["affine"]))
@pytest.mark.parametrize("policy", [*policy_names(), "static-cap:3"])
def test_every_program_ends_and_every_engine_is_left_empty(policy: str, routing: str) -> None:
    simulation, outcome = _run(policy, routing)
    assert sorted(e.job.id for e in outcome.ended) == sorted(j.id for j in JOBS)
    assert outcome.counters.output == sum(c.output for j in JOBS for c in j.calls)
    for core in simulation.cores:
        state = core.state
        assert (state.programs, state.totals) == ({}, Totals())
    for engine in simulation.engines.all.values():
        engine.cache.check([])
        assert engine.cache.stats().conversations == 0
        assert engine.counters.output > 0


def test_kv_goes_with_a_program_and_stays_behind_where_calls_are_scattered() -> None:
    stays = _run("atlas", "sticky")[1]
    assert _run("thunder", "sticky")[1].moves == 0  # its clock wakes everybody
    moves, scatters = _run("atlas")[1], _run("atlas", "scatter")[1]
    assert stays.moves == 0
    assert 0 < moves.moves < scatters.moves
    assert moves.moved > 0
    assert scatters.moved == 0
    assert scatters.recomputed > 2 * moves.recomputed


def test_one_engine_in_a_fleet_is_an_engine() -> None:
    fleet = Simulation(SMALL, make_policy("drawloom"), JOBS, True, replicas=2)
    alone = Simulation(SMALL, make_policy("drawloom"), JOBS, True)
    fleet.scheduler = MultiEngineScheduler(make_policy("drawloom"))
    fleet.engines, fleet._home = alone.engines, alone._home
    lone = Simulation(SMALL, make_policy("drawloom"), JOBS, True).run()
    assert [(e.job.id, e.ended) for e in fleet.run().ended] == [
        (e.job.id, e.ended) for e in lone.ended
    ]


def test_more_engines_are_not_slower() -> None:
    scenario = Scenario("swe", pressure=0.4, seeds=1, programs=40)
    one = compare(scenario, ["drawloom"])["drawloom"]
    two = compare(replace(scenario, replicas=2), ["drawloom"])["drawloom"]
    assert two["programs"] == one["programs"] == 40
    assert two["jct_mean_s"] < one["jct_mean_s"]
    assert 0 < two["busy_share"] <= 1


def test_a_fleet_of_none_and_an_unknown_routing_are_refused() -> None:
    with pytest.raises(ConfigError, match="run nothing"):
        compare(Scenario("swe", replicas=0), ["drawloom"])
    with pytest.raises(ConfigError, match="affine, sticky, scatter"):
        compare(Scenario("swe", replicas=2, routing="random"), ["drawloom"])


# --- the core ---------------------------------------------------------------------------------


def _fleet(*engines: str, routing: str = "affine", memory: int = 0) -> MultiEngineScheduler:
    # memory alone says how many run
    fleet = MultiEngineScheduler(Drawloom(Parameters(busy=-1.0)), routing)
    for name in engines:
        fleet.handle(EngineUp(name, KV, memory), 0.0)
    return fleet


def _submit(
    fleet: MultiEngineScheduler, name: str, tokens: int = 900, now: float = 0.0
) -> list[Action]:
    return fleet.handle(ProgramSubmitted(name, "agent", expect_tokens=tokens), now)


def _ready(
    fleet: MultiEngineScheduler, name: str, prompt: int = 100, now: float = 0.0
) -> list[Action]:
    return fleet.handle(StepReady(name, name, f"{name}#0", "llm", "?", prompt, 10), now)


def _started(actions: list[Action]) -> list[tuple[str, str]]:
    return [(a.engine, a.program) for a in actions if isinstance(a, StartStep)]


def _end_all(fleet: MultiEngineScheduler, engine: str) -> list[Action]:
    there = [name for name, home in fleet._homes.items() if home == engine]
    return [a for name in there for a in fleet.handle(ProgramEnded(name), 1.0)]


def test_new_programs_go_where_least_was_given_and_stay_there() -> None:
    fleet = _fleet("a", "b")
    homes = {}
    for name in ("p", "q"):
        _submit(fleet, name)
        ((homes[name], _),) = _started(_ready(fleet, name))
    assert set(homes.values()) == {"a", "b"}
    for name, home in homes.items():
        fleet.handle(StepFinished(name, name, f"{name}#0", "llm", "?", 110, ("t",)), 1.0)
        assert _started(_ready(fleet, name, 120, 2.0)) == [(home, name)]


def test_an_engine_with_nothing_to_do_takes_what_another_holds() -> None:
    fleet = _fleet("a", "b")
    for name in ("p", "q", "r", "s"):  # two run, two are held
        _submit(fleet, name)
        _ready(fleet, name)
    held = [n for core in fleet.engines.values() for n in core.state.wait_queue.programs]
    assert sorted(held) == ["r", "s"]
    busy = fleet._homes["r"]
    (other,) = {"a", "b"} - {busy}
    actions = _end_all(fleet, other)
    assert (other, "r") in _started(actions)
    assert not any(isinstance(a, MoveKV) for a in actions)  # it had none yet


def test_a_program_before_any_engine_is_told_so() -> None:
    with pytest.raises(EngineError, match="no engine is up"):
        _submit(_fleet(), "p")


def test_without_stealing_it_waits_for_its_own() -> None:
    fleet = _fleet("a", "b", routing="sticky")
    for name in ("p", "q", "r", "s"):
        _submit(fleet, name)
        _ready(fleet, name)
    (other,) = {"a", "b"} - {fleet._homes["r"]}
    actions = _end_all(fleet, other)
    assert "r" not in [name for _, name in _started(actions)]


def test_limits_of_a_tenant_hold_over_all_engines() -> None:
    fleet = _fleet("a", "b", "c")
    fleet.handle(TenantShare("default", programs=2), 0.0)
    admitted = [a.program for n in "pqrs" for a in _submit(fleet, n) if isinstance(a, Admit)]
    assert len(admitted) == 2
    actions = fleet.handle(ProgramEnded(admitted[0]), 1.0)
    (next_one,) = [a.program for a in actions if isinstance(a, Admit)]
    assert next_one in {"r", "s"}


def test_programs_of_an_engine_that_goes_down_go_on_elsewhere_without_their_kv() -> None:
    fleet = _fleet("a", "b")
    for name in ("p", "q"):
        _submit(fleet, name, tokens=400)
        _ready(fleet, name)
    down = fleet._homes["p"]
    (other,) = {"a", "b"} - {down}
    actions = fleet.handle(EngineDown(down), 1.0)
    assert _started(actions) == [(other, "p")]
    assert not [a for a in actions if isinstance(a, MoveKV | ReleaseKV)]
    assert set(fleet.engines) == {other}
    assert fleet.handle(Decoded(down, (("p", "p#0", 500),)), 1.5) == []
    assert fleet.handle(EngineDown(down), 1.5) == []
    end = StepFinished("p", "p", "p#0", "llm", "?", 110, ("t",))
    assert [a.engine for a in fleet.handle(end, 2.0) if isinstance(a, ReleaseKV)] == []
    assert _started(_ready(fleet, "p", 120, 3.0)) == [(other, "p")]


def test_from_an_engine_that_drains_programs_move_at_their_next_boundary_with_their_kv() -> None:
    fleet = _fleet("a", "b")
    for name in ("p", "q"):
        _submit(fleet, name, tokens=400)
        _ready(fleet, name)
    drains = fleet._homes["p"]
    (other,) = {"a", "b"} - {drains}
    assert not [a for a in fleet.handle(EngineDrain(drains), 1.0) if isinstance(a, MoveKV)]
    _submit(fleet, "new", tokens=100)
    assert fleet._homes["new"] == other
    actions = fleet.handle(StepFinished("p", "p", "p#0", "llm", "?", 110, ("t",), 100), 2.0)
    assert MoveKV(drains, other, "p", "p") in actions
    assert _started(_ready(fleet, "p", 120, 3.0)) == [(other, "p")]
    fleet.handle(EngineDown(drains), 4.0)
    assert set(fleet.engines) == {other}


def test_what_is_held_while_no_engine_is_up_goes_to_the_next_one() -> None:
    fleet = _fleet("a")
    _submit(fleet, "p")
    _ready(fleet, "p")
    assert _started(fleet.handle(EngineDown("a"), 1.0)) == []
    assert _started([*_submit(fleet, "q"), *_ready(fleet, "q")]) == []
    assert ("b", "p") in _started(fleet.handle(EngineUp("b", KV), 2.0))
    assert set(fleet.engines) == {"b"}


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
        routing=st.sampled_from(ROUTING), memory=st.sampled_from([0, 5 * KV]),
    )  # fmt: skip
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
        """Whoever waits for a call hears that it failed, and asks again."""
        if self.steps:
            step = data.draw(st.sampled_from(sorted(self.steps)))
            del self.steps[step]
            name, _, number = step.partition("#")
            self._send(StepFailed(name, step))
            after = f"{name}#{int(number) + 1}"
            self.steps[after] = "ready"
            self._send(StepReady(name, name, after, "llm/t", "?", 100, 10))

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
        self._send(StepReady(name, name, f"{name}#0", "llm", "?", tokens % 900 + 1, 10))

    @rule(data=st.data(), seconds=st.floats(0, 10), more=st.integers(1, 300))
    def turn(self, data: Any, seconds: float, more: int) -> None:
        running = sorted(step for step, at in self.steps.items() if at != "ready")
        if not running:
            return
        step = data.draw(st.sampled_from(running))
        name, _, number = step.partition("#")
        del self.steps[step]
        self.now += seconds
        end = StepFinished(name, name, step, "llm", "?", 100 + more, ("t",), service=seconds)
        self._send(end)
        self.now += seconds
        after = f"{name}#{int(number) + 1}"
        self.steps[after] = "ready"
        self._send(StepReady(name, name, after, "llm/t", "?", 100 + more, 10))

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
