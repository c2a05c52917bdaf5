"""Workloads by name: mixtures, waits for a human, fixed arrivals, load."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.sim.experiment import compare, run_one, variants
from drawloom.runtime.sim.fixed_workloads import FIXED, draw_fixed
from drawloom.runtime.sim.load_curves import over_load, saturation
from drawloom.runtime.sim.scenario import Scenario
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.workload import read


def _trace(path: Path) -> Path:
    steps = [
        {"in": 2_000, "reuse": 0, "out": 5, "end": "tool", "gap": 1.0},
        {"in": 2_100, "reuse": 2_005, "out": 5, "end": "user", "gap": 900.0},
        {"in": 2_200, "reuse": 2_105, "out": 5, "end": "user", "gap": 50.0},
    ]
    with gzip.open(path, "wt") as out:
        out.write(json.dumps({"id": "p", "class": "c", "steps": steps}))
    return path


def test_a_trace_keeps_its_waits_for_a_human_when_asked(tmp_path: Path) -> None:
    path = _trace(tmp_path / "t.jsonl.gz")
    assert [len(job.calls) for job in read(path)] == [2, 1]
    (whole,) = read(path, waits=True)
    assert [call.prompt for call in whole.calls] == [2_000, 2_100, 2_200]
    assert (whole.calls[1].gap, whole.calls[1].tool) == (900.0, "human")
    assert whole.calls[2].reuse == 2_105
    assert whole.gaps == 901.0


def test_of_a_mixture_each_part_is_drawn_alike_however_many_it_has(tmp_path: Path) -> None:
    path = _trace(tmp_path / "t.jsonl.gz")
    scenario = Scenario(f"{path}+function", programs=400)
    agents = [job.agent for job in scenario.draw(0)]
    assert 160 < agents.count("function") < 240
    assert scenario.draw(0) == scenario.draw(0) != scenario.draw(1)


def test_some_wait_an_hour_and_are_counted_apart() -> None:
    plain = Scenario("function", seeds=1, programs=200)
    scenario = replace(plain, humans=0.15)
    jobs = scenario.draw(0)
    asking = [job for job in jobs if job.group == "asking"]
    assert 15 < len(asking) < 50
    for before, job in zip(plain.draw(0), jobs, strict=True):
        assert job.arrival == before.arrival
        assert (job.gaps >= 3_600) == (job in asking)
        assert [c.prompt for c in job.calls] == [c.prompt for c in before.calls]
    row = compare(replace(scenario, programs=40), ["fcfs-lru"])["fcfs-lru"]
    assert row["jct_mean_s, plain"] < 3_600 < row["jct_mean_s, asking"]
    assert row["stretch_max"] < 600  # alone it waits as well


@pytest.mark.parametrize("name", FIXED)
def test_fixed_workloads_are_ones_that_could_be_and_differ_by_seed(name: str) -> None:
    jobs = draw_fixed(name, 0, 1)
    assert jobs == draw_fixed(name, 0, 1)
    assert len({job.id for job in jobs}) == len(jobs)
    assert {job.id for job in jobs}.isdisjoint(job.id for job in draw_fixed(name, 0, 2))
    machine = Scenario(name).engine()
    for job in jobs:
        assert max(call.context for call in job.calls) <= machine.kv_tokens
        for at, call in enumerate(job.calls):
            base = job.base(at)
            assert 0 <= call.reuse <= (job.calls[base].context if base >= 0 else 0)
            assert call.reuse <= call.prompt
            assert call.output <= job.max_tokens


def test_agents_are_those_that_ask_real_servers() -> None:
    jobs = draw_fixed("agents", 3, 0)
    rng = random.Random(1)
    for _ in range(150):
        rng.choice("abcdefghijklmnopqrstuvwx")
    job, steps = jobs[1], 8 + rng.randint(-4, 4)
    assert len(job.calls) == steps
    assert job.calls[0].gap == rng.lognormvariate(-0.3, 0.9)
    grown = job.calls[1].prompt - job.calls[0].prompt
    assert grown - 24 - 16 == rng.randint(80, 260)
    assert len(draw_fixed("agents", 24, 0)) == 24
    past = draw_fixed("agents-past", 3, 0)[1]
    assert [c.prompt for c in past.calls] == [c.prompt for c in job.calls]
    assert past.calls[1].reuse == job.calls[0].prompt < job.calls[1].reuse


def test_a_fixed_workload_runs_on_its_own_machine_with_what_is_known_of_it() -> None:
    scenario = Scenario("agents", programs=4, seeds=1)
    assert (scenario.machine_name, scenario.informed) == ("cpu-135m", "http")
    assert Scenario("liar").informed == "declared"
    outcome = run_one(scenario, "drawloom", 0)
    assert len(outcome.ended) == 4
    row = compare(Scenario("liar", seeds=1), ["fcfs-lru"])["fcfs-lru"]
    assert {"jct_mean_s, liars", "jct_max_s, others"} < set(row)


@pytest.mark.parametrize("calibrated", [False, True])
def test_costs_are_learned_unless_the_scheduler_is_told(calibrated: bool) -> None:
    scenario = Scenario("function", programs=3, seeds=1)
    engine = scenario.engine()
    simulation = Simulation(
        engine, make_policy("drawloom"), scenario.draw(0), True, calibrated=calibrated
    )
    simulation.run()
    cost = simulation.cores[0].state.cost
    assert cost.copy == (engine.cost.copy if calibrated else CostModel().copy)
    assert cost.prefill < CostModel().prefill  # learned from what ended


def test_swept_names_stand_for_several() -> None:
    scenario = Scenario("function", seeds=1, programs=5)
    assert all(name.startswith("cap-order:") for name in variants(scenario, "cap-order"))
    assert variants(scenario, "atlas:best")[-1] == "atlas"
    assert len(variants(scenario, "atlas:best")) > 3
    assert variants(scenario, "atlas") == ["atlas"]
    found = compare(scenario, ["fcfs-lru:best"])
    assert len(found) == 1


def test_engines_run_no_more_calls_than_a_request_level_policy_allows() -> None:
    scenario = Scenario("function", seeds=1, programs=12)
    jobs = [replace(job, arrival=0.0) for job in scenario.draw(0)]
    simulation = Simulation(scenario.engine(), make_policy("fcfs-lru:2"), jobs, False)
    outcome = simulation.run()
    assert outcome.counters.sequences <= 2 * outcome.counters.busy
    assert len(outcome.ended) == 12


def test_load_is_a_share_of_what_a_backlog_ends() -> None:
    scenario = Scenario("function", seeds=1, programs=60, pressure=20.0)
    most = saturation(scenario)
    low, high = over_load(scenario, ["fcfs-lru"], [0.5, 1.5], [])
    assert (low.rate, high.rate) == pytest.approx((0.5 * most, 1.5 * most))
    assert low.policies["fcfs-lru"]["jct_mean_s"] < high.policies["fcfs-lru"]["jct_mean_s"]
    (one, two) = over_load(scenario, ["fcfs-lru"], [], [20.0, 10.0])
    assert (one.memory, two.memory, one.load) == (20.0, 10.0, 0.0)
    with pytest.raises(ConfigError, match="no load"):
        saturation(Scenario("human"))


def test_later_seeds_are_others() -> None:
    assert list(Scenario("swe", seeds=5, first_seed=5).draws) == [5, 6, 7, 8, 9]
