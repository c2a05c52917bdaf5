"""Several engines: a program is at one of them at a time, moves with its KV, and none idles while
another holds programs back."""

from dataclasses import replace
from functools import cache

import pytest

from drawloom.errors import ConfigError, EngineError
from drawloom.runtime.scheduler.actions import Action, Admit, MoveKV, ReleaseKV, StartStep
from drawloom.runtime.scheduler.events import (
    Decoded,
    EngineDown,
    EngineDrain,
    EngineUp,
    StepFinished,
    TenantShare,
)
from drawloom.runtime.scheduler.multi_engine import ROUTING, MultiEngineScheduler
from drawloom.runtime.scheduler.policies import make_policy, policy_names
from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.state import Totals
from drawloom.runtime.sim.experiment import Scenario, compare
from drawloom.runtime.sim.presets import machine
from drawloom.runtime.sim.sim_program import Outcome
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.synthetic import generate
from drawloom.runtime.sim.workload import Mix
from tests.lanes import slow_unless

from .harness import KV, MEMORY_ALONE, SchedulerHarness

SMALL = replace(machine("h200-8b"), kv_tokens=200_000, host_tokens=800_000)


JOBS = Mix(tuple(generate("swe", 16, seed=3)), 24, 28).draw(0, 100.0)


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
    fleet = Simulation(SMALL, make_policy("drawloom"), JOBS, True)
    fleet.scheduler = MultiEngineScheduler(make_policy("drawloom"))
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


def _fleet(*engines: str, routing: str = "affine", memory: int = 0) -> SchedulerHarness:
    policy = Drawloom(MEMORY_ALONE)
    it = SchedulerHarness(
        policy, expect_tokens=900, scheduler=MultiEngineScheduler(policy, routing)
    )
    for name in engines:
        it.handle(EngineUp(name, KV, memory), 0.0)
    return it


def _started(actions: list[Action]) -> list[tuple[str, str]]:
    return [(a.engine, a.program) for a in actions if isinstance(a, StartStep)]


def _end_all(fleet: SchedulerHarness, engine: str) -> list[Action]:
    there = [name for name, home in fleet.fleet._homes.items() if home == engine]
    return [a for name in there for a in fleet.end(name, 1.0)]


def test_new_programs_go_where_least_was_given_and_stay_there() -> None:
    fleet = _fleet("a", "b")
    homes = {}
    for name in ("p", "q"):
        fleet.submit(name)
        ((homes[name], _),) = _started(fleet.ready(name))
    assert set(homes.values()) == {"a", "b"}
    for name, home in homes.items():
        fleet.handle(
            StepFinished(
                program=name,
                conversation=name,
                step=f"{name}#0",
                state="llm",
                engine="?",
                context=110,
                calls=("t",),
            ),
            1.0,
        )
        assert _started(fleet.ready(name, 120, 2.0)) == [(home, name)]


def test_an_engine_with_nothing_to_do_takes_what_another_holds() -> None:
    fleet = _fleet("a", "b")
    for name in ("p", "q", "r", "s"):  # two run, two are held
        fleet.submit(name)
        fleet.ready(name)
    held = [n for core in fleet.fleet.engines.values() for n in core.state.wait_queue.programs]
    assert sorted(held) == ["r", "s"]
    busy = fleet.fleet._homes["r"]
    (other,) = {"a", "b"} - {busy}
    actions = _end_all(fleet, other)
    assert (other, "r") in _started(actions)
    assert not any(isinstance(a, MoveKV) for a in actions)  # it had none yet


def test_a_program_before_any_engine_is_told_so() -> None:
    with pytest.raises(EngineError, match="no engine is up"):
        _fleet().submit("p")


def test_without_stealing_it_waits_for_its_own() -> None:
    fleet = _fleet("a", "b", routing="sticky")
    for name in ("p", "q", "r", "s"):
        fleet.submit(name)
        fleet.ready(name)
    (other,) = {"a", "b"} - {fleet.fleet._homes["r"]}
    actions = _end_all(fleet, other)
    assert "r" not in [name for _, name in _started(actions)]


def test_limits_of_a_tenant_hold_over_all_engines() -> None:
    fleet = _fleet("a", "b", "c")
    fleet.handle(TenantShare("default", programs=2), 0.0)
    admitted = [a.program for n in "pqrs" for a in fleet.submit(n) if isinstance(a, Admit)]
    assert len(admitted) == 2
    actions = fleet.end(admitted[0], 1.0)
    (next_one,) = [a.program for a in actions if isinstance(a, Admit)]
    assert next_one in {"r", "s"}


def test_programs_of_an_engine_that_goes_down_go_on_elsewhere_without_their_kv() -> None:
    fleet = _fleet("a", "b")
    for name in ("p", "q"):
        fleet.submit(name, expect_tokens=400)
        fleet.ready(name)
    down = fleet.fleet._homes["p"]
    (other,) = {"a", "b"} - {down}
    actions = fleet.handle(EngineDown(down), 1.0)
    assert _started(actions) == [(other, "p")]
    assert not [a for a in actions if isinstance(a, MoveKV | ReleaseKV)]
    assert set(fleet.fleet.engines) == {other}
    assert fleet.handle(Decoded(down, (("p", "p#0", 500),)), 1.5) == []
    assert fleet.handle(EngineDown(down), 1.5) == []
    end = StepFinished(
        program="p",
        conversation="p",
        step="p#0",
        state="llm",
        engine="?",
        context=110,
        calls=("t",),
    )
    assert [a.engine for a in fleet.handle(end, 2.0) if isinstance(a, ReleaseKV)] == []
    assert _started(fleet.ready("p", 120, 3.0)) == [(other, "p")]


def test_from_an_engine_that_drains_programs_move_at_their_next_boundary_with_their_kv() -> None:
    fleet = _fleet("a", "b")
    for name in ("p", "q"):
        fleet.submit(name, expect_tokens=400)
        fleet.ready(name)
    drains = fleet.fleet._homes["p"]
    (other,) = {"a", "b"} - {drains}
    assert not [a for a in fleet.handle(EngineDrain(drains), 1.0) if isinstance(a, MoveKV)]
    fleet.submit("new", expect_tokens=100)
    assert fleet.fleet._homes["new"] == other
    actions = fleet.handle(
        StepFinished(
            program="p",
            conversation="p",
            step="p#0",
            state="llm",
            engine="?",
            context=110,
            calls=("t",),
            computed=100,
        ),
        2.0,
    )
    assert MoveKV(drains, other, "p", "p") in actions
    assert _started(fleet.ready("p", 120, 3.0)) == [(other, "p")]
    fleet.handle(EngineDown(drains), 4.0)
    assert set(fleet.fleet.engines) == {other}


def test_what_is_held_while_no_engine_is_up_goes_to_the_next_one() -> None:
    fleet = _fleet("a")
    fleet.submit("p")
    fleet.ready("p")
    assert _started(fleet.handle(EngineDown("a"), 1.0)) == []
    assert _started([*fleet.submit("q"), *fleet.ready("q")]) == []
    assert ("b", "p") in _started(fleet.handle(EngineUp("b", KV), 2.0))
    assert set(fleet.fleet.engines) == {"b"}
