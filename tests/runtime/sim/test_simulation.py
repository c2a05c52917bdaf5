"""The simulator: nothing is lost, nothing is quicker than it can be, and the same seed is the same
run."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.errors import ConfigError, EngineError
from drawloom.runtime.scheduler import Policy
from drawloom.runtime.scheduler.actions import Action
from drawloom.runtime.scheduler.events import Decoded, Event, Preempted, StepReady
from drawloom.runtime.scheduler.policies import make_policy, policy_names
from drawloom.runtime.scheduler.state import Totals
from drawloom.runtime.sim.experiment import Scenario, compare
from drawloom.runtime.sim.oracle import Clairvoyant, Gittins, fastest, knowable, work_left
from drawloom.runtime.sim.presets import Machine, machine
from drawloom.runtime.sim.report import figures, isolated
from drawloom.runtime.sim.sim_program import Outcome
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.synthetic import generate
from drawloom.runtime.sim.workload import Call, Job, Mix, in_flight, read

H200 = machine("h200-8b")
SMALL = replace(H200, kv_tokens=200_000, host_tokens=800_000)
JOBS = generate("swe", 16, seed=3)


def _policy(name: str, jobs: list[Job]) -> Policy:
    return Clairvoyant(jobs, H200.cost) if name == Clairvoyant.name else make_policy(name)


def _drawn(count: int = 12, seed: int = 0) -> list[Job]:
    return Mix(tuple(JOBS), 8, count).draw(seed, 100.0)


def _run(
    name: str, jobs: list[Job], host: bool = True, kv: Machine = SMALL
) -> tuple[Simulation, Outcome]:
    simulation = Simulation(kv, _policy(name, jobs), jobs, host)
    return simulation, simulation.run()


def _outcome(ran: tuple[Simulation, Outcome]) -> Outcome:
    return ran[1]


def _is_empty(simulation: Simulation) -> None:
    for core in simulation.cores:
        state = core.state
        assert not state.programs
        assert state.totals == Totals()
    for engine in simulation.engines.all.values():
        engine.cache.check([])
        assert engine.cache.stats().conversations == 0
        assert engine.cache.stats().held_blocks == 0


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("name", [*policy_names(), "static-cap:3", Clairvoyant.name])
def test_every_program_ends_under_every_policy_and_leaves_nothing(name: str, host: bool) -> None:
    jobs = _drawn()
    simulation, outcome = _run(name, jobs, host)
    assert sorted(e.job.id for e in outcome.ended) == sorted(j.id for j in jobs)
    assert outcome.counters.output == sum(c.output for j in jobs for c in j.calls)
    _is_empty(simulation)


@pytest.mark.parametrize("name", ["fcfs-lru", "static-cap:3", "static-cap:12", "drawloom"])
@pytest.mark.parametrize("kind", ["swe", "rl", "web"])
def test_nothing_is_faster_than_what_no_schedule_exceeds(name: str, kind: str) -> None:
    jobs = [replace(j, arrival=0.0) for j in Mix(tuple(generate(kind, 32)), 16, 24).draw(0, 100.0)]
    outcome = _outcome(_run(name, jobs))
    most = fastest(jobs, SMALL)
    assert outcome.counters.output / outcome.seconds < most
    if name == "static-cap:12" and kind == "web":  # nothing waits, nothing is lost: close to it
        assert outcome.counters.output / outcome.counters.busy > 0.35 * most


def test_the_same_seed_is_the_same_run() -> None:
    first, second = (_outcome(_run("drawloom", _drawn(seed=4))) for _ in range(2))
    assert [(e.job.id, e.ended, e.waits) for e in first.ended] == [
        (e.job.id, e.ended, e.waits) for e in second.ended
    ]


def test_a_program_alone_takes_what_the_cost_model_says() -> None:
    for job in JOBS[:6]:
        outcome = _outcome(_run("fcfs-lru", [job], kv=H200))
        assert outcome.ended[0].jct == pytest.approx(isolated(H200, [job])[job.id], rel=0.03)


@pytest.mark.parametrize("name", ["fcfs-lru", "drawloom", "thunder"])
def test_nobody_is_quicker_than_alone(name: str) -> None:
    jobs = _drawn(10)
    alone = isolated(SMALL, JOBS)
    for ended in _outcome(_run(name, jobs)).ended:
        assert ended.jct >= 0.97 * alone[ended.job.id.split(":", 1)[1]]


def test_without_pressure_nothing_is_computed_twice() -> None:
    plenty = replace(H200, kv_tokens=20_000_000)
    for name in ("fcfs-lru", "drawloom", "continuum"):
        outcome = _outcome(_run(name, _drawn(), host=False, kv=plenty))
        assert outcome.recomputed <= 0.01 * outcome.fresh, name


def test_under_pressure_the_program_aware_policy_recomputes_less_and_ends_sooner() -> None:
    jobs = _drawn(24)
    alone = isolated(SMALL, JOBS)
    found = {n: figures([_outcome(_run(n, jobs, False))], alone) for n in ("fcfs-lru", "drawloom")}
    assert found["fcfs-lru"]["recomputed_share"] > 1.0
    assert found["drawloom"]["recomputed_share"] < 0.2 * found["fcfs-lru"]["recomputed_share"]
    assert found["drawloom"]["jct_mean_s"] < 0.7 * found["fcfs-lru"]["jct_mean_s"]


def test_knowing_the_work_that_is_left_puts_short_programs_first() -> None:
    calls = (Call(20_000, 0, 2_000, 0.0, "t"),) * 4
    long = [Job(f"0:long{n}", "a", calls) for n in range(4)]
    short = [Job(f"1:short{n}", "a", calls[:1], arrival=0.1) for n in range(4)]
    tight = replace(H200, kv_tokens=24_000)
    ended = _outcome(_run(Clairvoyant.name, long + short, False, tight)).ended
    assert [e.job.id[:3] for e in ended] == ["0:l", *["1:s"] * 4, *["0:l"] * 3]
    assert work_left(long[0], H200.cost)[0] > work_left(short[0], H200.cost)[0]


def _works(*steps: int, agent: str = "a") -> Job:
    return Job(f"{agent}{steps}", agent, (Call(1_000, 0, 100, 0.0, "t"),) * steps[0])


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=200), st.floats(0, 1e4))
def test_the_cost_of_a_completion_is_the_least_over_all_times_to_stop(
    services: list[float], had: float
) -> None:
    left = [service - had for service in services if service > had]
    costs = [
        sum(min(one, stop) for one in left) / sum(one <= stop for one in left) for stop in left
    ]
    expected = min(costs) if costs else max(had, 1e-3)
    assert Gittins(services).cost(had) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_what_can_be_known_is_nothing_of_likes_and_all_of_classes() -> None:
    # two agents, each of one length: their names say all
    classes = [_works(2, agent="short"), _works(40, agent="long")]
    assert knowable(classes, H200.cost) == pytest.approx(1.0, abs=0.02)
    # one agent: after two calls it is known who goes on, and the two were not in vain
    mixed = [_works(2), _works(40)]
    assert 0.6 < knowable(mixed, H200.cost) < 1.0
    # lengths that say less the longer they are waited for
    even = [_works(n) for n in range(10, 41)]
    assert knowable(even, H200.cost) < 0.3


def test_a_traces_file_is_cut_at_human_turns_and_clipped(tmp_path: Path) -> None:
    tools = [{"name": "b", "s": 1}]
    steps = [
        {"in": 100, "reuse": 0, "out": 5, "end": "tool", "gap": 1.0, "tools": tools},
        {"in": 120, "reuse": 100, "out": 5, "end": "user", "gap": 900.0},
        {"in": 140, "reuse": 120, "out": 5, "end": "tool", "gap": 2.0},
        {"in": 500_000, "reuse": 140, "out": 5, "end": "final", "gap": None},
    ]
    row = {"id": "p", "class": "c", "shared_prefix": {"id": "s", "tokens": 90}, "steps": steps}
    path = tmp_path / "t.jsonl.gz"
    with gzip.open(path, "wt") as out:
        out.write(json.dumps(row))
    first, second = read(path)
    assert [c.prompt for c in first.calls] == [100, 120]
    assert first.calls[0].tool == "b"
    assert (first.shared, first.gaps) == (90, 1.0)
    assert [c.prompt for c in second.calls] == [140]
    assert second.calls[0].reuse == 0
    (tmp_path / "bad").write_text("x")
    with pytest.raises(ConfigError, match="is no trace file"):
        read(tmp_path / "bad")


KINDS = ("swe", "chats", "web", "function", "rl", "planner", "map-reduce", "best-of-n", "graphs")


@pytest.mark.parametrize("kind", KINDS)
def test_generated_programs_are_ones_that_could_be(kind: str) -> None:
    jobs = generate(kind, 32, seed=1)
    assert jobs == generate(kind, 32, seed=1)
    for job in jobs:
        assert job.shared <= job.calls[0].prompt
        for at, call in enumerate(job.calls):
            base = job.base(at)
            assert base < at
            assert all(before < at for before in job.after(at))
            assert base < 0 or base in job.after(at) or base == 0
            assert 0 <= call.reuse <= (job.calls[base].context if base >= 0 else 0)
            assert call.reuse <= call.prompt
            assert call.output > 0
        assert sorted({call.chat for call in job.calls})[0] == 0
        assert job.after(len(job.calls) - 1) or len(job.calls) == 1


@pytest.mark.parametrize("knows", ["declared", "learned", "http", "blind"])
@pytest.mark.parametrize("host", [False, True])
def test_programs_of_many_conversations_end_and_leave_nothing(knows: str, host: bool) -> None:
    jobs = Mix(tuple(generate("graphs", 12, seed=2)), 6, 12).draw(1, 60.0)
    simulation = Simulation(SMALL, make_policy("drawloom"), jobs, host, knows=knows)
    outcome = simulation.run()
    assert len(outcome.ended) == len(jobs)
    assert outcome.counters.output == sum(c.output for j in jobs for c in j.calls)
    state = simulation.cores[0].state
    assert state.totals == Totals()
    _is_empty(simulation)
    for ended in outcome.ended:
        assert ended.jct >= 0.97 * isolated(SMALL, [ended.job])[ended.job.id]


def test_branches_run_beside_each_other_and_the_join_waits_for_the_last() -> None:
    fork = Call(1_000, 0, 64, 5.0, "t")
    slow = Call(1_128, 1_064, 6_400, gap=0.0, tool="t", site="work", chat=1, after=(0,), base=0)
    quick = Call(1_128, 1_064, 64, gap=0.0, tool="t", site="work", chat=2, after=(0,), base=0)
    join = Call(2_128, 1_064, 64, gap=0.0, tool="", site="join", chat=0, after=(1, 2), base=0)
    job = Job("0:j", "a", (fork, slow, quick, join))
    assert job.peak == 2_192 + 6_464 + 128
    (ended,) = _outcome(_run("drawloom", [job], kv=H200)).ended
    alone = isolated(H200, [job])["0:j"]
    chain = replace(job, calls=(fork, replace(slow, chat=0), replace(quick, after=(1,)), join))
    assert alone < isolated(H200, [chain])["0:j"]
    assert ended.jct == pytest.approx(alone, rel=0.05)


@pytest.mark.slow
def test_what_is_declared_is_worth_more_than_what_a_request_says() -> None:
    found = {}
    for knows in ("declared", "blind"):
        scenario = Scenario("best-of-n", seeds=1, programs=150, skip=75, knows=knows)
        found[knows] = compare(scenario, ["drawloom"])["drawloom"]["jct_mean_s"]
    assert found["declared"] < 0.8 * found["blind"]


def test_what_there_is_not_is_refused_with_what_there_is() -> None:
    for bad, message in (
        (Scenario("nothing"), "swe, chats, web, function, rl, .*, agents, .*, human"),
        (Scenario("swe", machine="toaster"), "4xh200-70b, cpu-135m, h200-8b"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(bad, ["fcfs-lru"])
    with pytest.raises(ConfigError, match="policy 'magic' is not known"):
        compare(Scenario("swe", seeds=1), ["magic"])


def test_a_program_larger_than_the_machine_is_named_and_not_waited_for() -> None:
    huge = Job("0:huge", "a", (Call(300_000, 0, 10, 0.0, "t"),))
    with pytest.raises(EngineError, match="0:huge has a prompt of"):
        _run("fcfs-lru", [huge])


def test_policies_are_compared_over_seeds_and_the_best_cap_of_a_sweep_is_shown() -> None:
    scenario = Scenario("function", seeds=2, programs=6)
    found = compare(scenario, ["fcfs-lru", "static-cap", "drawloom"])
    assert len(found) == 3
    assert sum(name.startswith("static-cap:") for name in found) == 1
    assert all(row["programs"] == 12 for row in found.values())


def test_bursts_arrive_together_at_the_same_rate() -> None:
    alone = Mix(tuple(JOBS), 8, 4000).draw(0, 100.0)
    bursts = Mix(tuple(JOBS), 8, 4000, burst=10).draw(0, 100.0)
    assert len({job.arrival for job in alone}) == 4000
    assert len({job.arrival for job in bursts}) == 400
    assert bursts[-1].arrival == pytest.approx(alone[-1].arrival, rel=0.2)
    with pytest.raises(ConfigError, match="at a time"):
        compare(Scenario("swe", burst=0), ["fcfs-lru"])


def test_programs_in_flight_fill_memory_as_often_as_asked() -> None:
    jobs = [Job("a", "a", (Call(900, 0, 100, 0.0, "t"),))]
    assert in_flight(jobs, 10_000, 0.5) == 20


def test_the_core_hears_who_gave_way_and_then_said_more_but_never_how_much_it_will_say() -> None:
    calls = (Call(20_000, 0, 6_000, 1.0, "t"), Call(26_500, 26_000, 6_000, 0.0, "t"))
    jobs = [Job(f"0:{name}", "a", calls, max_tokens=9_000) for name in "abcd"]
    simulation = Simulation(replace(SMALL, kv_tokens=90_000), make_policy("fcfs-lru"), jobs, False)
    heard: list[Event] = []
    handle = simulation.scheduler.handle

    def hear(event: Event, now: float) -> list[Action]:
        heard.append(event)
        return handle(event, now)

    simulation.scheduler.handle = hear  # type: ignore[method-assign]
    outcome = simulation.run()
    gave_way = [event for event in heard if isinstance(event, Preempted)]
    assert len(gave_way) == outcome.counters.preempted > 0
    for event in gave_way:
        later = heard[heard.index(event) :]
        spoke = [one for one in later if isinstance(one, Decoded)]
        assert any(step == event.step for one in spoke for _, step, _ in one.calls)
    assert {event.output for event in heard if isinstance(event, StepReady)} == {9_000}
    assert outcome.counters.output == 8 * 6_000
    assert outcome.recomputed >= outcome.counters.repeated > 0
    _is_empty(simulation)
