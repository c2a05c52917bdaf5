"""The parts of the `drawloom` policy, each by what it is for, and each without it."""

import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.runtime.scheduler.events import (
    Expected,
    StepFailed,
)
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.policies.parts.admission import Admission, Cap
from drawloom.runtime.scheduler.policies.parts.bound import Bound
from drawloom.runtime.scheduler.policies.parts.housing import Housing
from drawloom.runtime.scheduler.policies.parts.order import Order
from drawloom.runtime.scheduler.policies.parts.residency import Residency
from drawloom.runtime.scheduler.program_state import Phase, ProgramState, Rank
from drawloom.runtime.sim.presets import machine
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.workload import Call, Job

from .asking import ask_everything, snapshot
from .harness import KV, MEMORY_ALONE, SchedulerHarness, admitted, one_fits, started


def _run(it: SchedulerHarness, name: str, calls: int, **options: Any) -> None:
    """A program of so many calls, from submission to end."""
    it.submit(name, **options)
    for _ in range(calls):
        it.now += 1.0
        it.ready(name)
        it.done(name, 900, service=1.0)
    it.end(name)


# --- residency ----------------------------------------------------------------------------------


def test_a_tool_longer_than_its_lease_gives_its_place_up_and_has_it_back_with_its_call() -> None:
    it = one_fits()
    it.submit("asks")
    it.ready("asks")
    it.submit("waits")
    it.ready("waits")
    it.now = 1.0
    assert started(it.done("asks")) == []
    it.now = 60.0
    assert started(it.tick()) == []  # two leases of an unknown tool are not over
    it.now = 62.0
    assert started(it.tick()) == ["waits"]
    assert (
        it.state.totals.reserved_tokens == it.program("waits").reserved_tokens
    )  # it is promised nothing
    it.now = 3600.0
    assert started(it.ready("asks", 120)) == []
    it.end("waits")
    assert it.program("asks").active and it.program("asks").running_calls


def test_who_has_failed_and_makes_no_other_call_gives_its_place_up() -> None:
    it = one_fits()
    it.submit("fails")
    it.ready("fails")
    it.submit("waits")
    it.handle(StepFailed("fails", "fails#0"))
    it.now = 100.0
    assert admitted(it.tick()) == ["waits"]


def test_who_has_nothing_to_run_is_not_admitted() -> None:
    it = one_fits()
    it.submit("asks")
    it.ready("asks")
    it.submit("first")
    it.now = 1.0
    it.done("asks")
    it.now = 100.0
    it.tick()
    assert set(it.state.active) == {"first"}
    it.end("first")
    assert not it.state.active  # it still waits for its human
    assert it.state.wait_queue.first is None
    assert started(it.ready("asks", 120)) == ["asks"]


def _job(name: str, rng: random.Random, gap: Callable[[int], float], arrival: float) -> Job:
    """Twelve calls, of which each has 800 tokens more to read."""
    calls, prompt, reuse = list[Call](), 4000, 0
    for number in range(12):
        wait = gap(number)
        tool = "bash" if wait < 600 else "ask_human"
        calls.append(Call(prompt, reuse, 200, wait * rng.expovariate(1), tool))
        reuse = prompt + 200
        prompt = reuse + 800
    return Job(name, "human" if name[0] == "h" else "a", tuple(calls), arrival=arrival)


def _jct(policy: str, jobs: list[Job], host: bool) -> float:
    """Mean JCT of the programs that no human answers."""
    small = replace(machine("h200-8b"), kv_tokens=100_000, host_tokens=400_000)
    ended = Simulation(small, make_policy(policy), jobs, host, knows="learned").run().ended
    return statistics.fmean(e.jct for e in ended if e.job.id[0] != "h")


@pytest.mark.parametrize("host", [True, False])
def test_tools_that_become_slower_by_far_do_not_empty_the_machine(host: bool) -> None:
    rng, jobs, now = random.Random(3), list[Job](), 0.0
    for number in range(60):
        now += rng.expovariate(1 / 8)
        slow = 1.0 if number < 30 else 100.0
        jobs.append(_job(f"p{number}", rng, lambda _, slow=slow: slow, now))  # type: ignore[misc]
    assert _jct("drawloom", jobs, host) <= 1.3 * _jct("offload-lru", jobs, host)


@pytest.mark.parametrize("host", [True, False])
def test_programs_that_wait_for_humans_do_not_keep_the_others_out(host: bool) -> None:
    rng = random.Random(1)
    jobs = [_job(f"h{i}", rng, lambda n: 3600.0 if n == 6 else 1.0, i * 2.0) for i in range(20)] + [
        _job(f"n{i}", rng, lambda n: 1.0, 150 + i * 5.0) for i in range(20)
    ]
    assert _jct("drawloom", jobs, host) <= 1.3 * _jct("offload-lru", jobs, host)


# --- the bound ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_once_a_program_is_due_none_of_its_priority_goes_before_it(data: Any) -> None:
    it = one_fits(
        Drawloom(replace(MEMORY_ALONE, patience=2.0, patience_unknown=30.0, shortest=0.5))
    )
    state, transition = it.state, it.state.transition

    def checked(program: ProgramState, to: Phase, now: float, rank: Rank = ()) -> None:
        for other in state.wait_queue.programs.values() if to is Phase.ACTIVE else ():
            same = other.submission.priority == program.submission.priority
            due = max(other.due_at, state.wait_queue.due_at(other))
            if other is not program and same and other.wants_admission and due <= now:
                assert program.due_at <= now
                assert (program.due_at, program.index) < (other.due_at, other.index)
        transition(program, to, now, rank)

    state.transition = checked  # type: ignore[method-assign]
    made, calling = 0, set[str]()
    for _ in range(data.draw(st.integers(10, 60))):
        it.now += data.draw(st.sampled_from([0.0, 1.0, 5.0, 40.0]))
        what = data.draw(st.sampled_from(["new", "new", "call", "answer", "end", "wait"]))
        begun = sorted(p.id for p in state.programs.values() if p.was_admitted)
        if what == "new":
            made += 1
            agent = data.draw(st.sampled_from(["a", "b", f"unknown{made}"]))
            tokens, priority = data.draw(st.integers(100, 900)), data.draw(st.integers(-1, 1))
            it.submit(f"p{made}", agent=agent, expect_tokens=tokens, priority=priority)
            it.ready(f"p{made}", data.draw(st.integers(1, 500)))
            calling.add(f"p{made}")
        elif what == "wait":
            it.tick()
        elif begun:
            name = data.draw(st.sampled_from(begun))
            if what == "end":
                it.end(name)
                calling.discard(name)
            elif what == "call" and name not in calling:
                it.ready(name, data.draw(st.integers(1, 900)))
                calling.add(name)
            elif what == "answer" and it.program(name).running_calls:
                it.done(name, data.draw(st.integers(1, 900)))
                calling.discard(name)


def test_who_is_due_is_not_hidden_by_one_that_nobody_knows() -> None:
    it = one_fits()
    for number in range(10):
        _run(it, f"known{number}", 2)
    it.submit("runs")
    it.submit("mask", agent="unknown", priority=-1)
    it.submit("big")
    it.ready("big", 800)
    for number in range(100):
        if it.program("big").active:
            break
        it.submit(f"small{number}")
        it.ready(f"small{number}", 10)
        it.now += 1.0
        (name,) = it.state.active
        it.end(name)
    assert it.program("big").active
    assert it.now < 60.0  # five times what such programs take


# --- order --------------------------------------------------------------------------------------


def test_who_always_declares_one_call_gains_nothing_once_that_is_known() -> None:
    it = one_fits()
    for number in range(30):
        _run(it, f"liar{number}", 40, agent="liar", expect_steps=1.0)
        _run(it, f"honest{number}", 5, agent="honest", expect_steps=5.0)
    it.submit("runs")
    it.submit("liar", agent="liar", expect_steps=1.0)
    it.submit("honest", agent="honest", expect_steps=5.0)
    assert admitted(it.end("runs")) == ["honest"]


def test_who_declares_more_with_each_call_is_not_believed() -> None:
    it = one_fits()
    for number in range(10):
        _run(it, f"usual{number}", 20)
    it.submit("raises", expect_steps=2.0)
    cost = it.policy.rank(it.state, it.program("raises"))[1]
    assert cost == pytest.approx(2.0)
    for _ in range(4):
        it.ready("raises")
        it.done("raises")
        it.handle(Expected("raises", 2.0))
    cost = it.policy.rank(it.state, it.program("raises"))[1]
    assert cost == pytest.approx(20.0)


# --- admission ----------------------------------------------------------------------------------


def test_two_tiny_programs_do_not_say_that_all_are_tiny() -> None:
    it = one_fits()
    for name in ("tiny", "small"):
        it.submit(name, expect_tokens=None)
        it.ready(name)
        it.done(name, 10)
        it.end(name)
    for number in range(50):
        it.submit(f"p{number}", expect_tokens=None)
    peaks = KV // 8  # as the policy guesses of an agent of which it knows nothing
    assert len(it.state.active) <= 2 * KV / peaks


def test_fewer_run_where_peaks_differ() -> None:
    counts = []
    for peaks in ((200, 200), (50, 350)):
        it = one_fits()
        for number in range(40):
            it.submit(f"p{number}", expect_tokens=200)
            it.ready(f"p{number}")
            it.done(f"p{number}", peaks[number % 2])
            it.end(f"p{number}")
        for number in range(50):
            it.submit(f"q{number}", expect_tokens=200)
        counts.append(len(it.state.active))
    assert counts[1] < counts[0]


def test_what_many_programs_showed_outweighs_what_one_says_of_itself() -> None:
    it = one_fits()
    for number in range(40):
        it.submit(f"p{number}")  # each says that it needs almost all
        it.ready(f"p{number}")
        it.done(f"p{number}", 50)
        it.end(f"p{number}")
    for number in range(20):
        it.submit(f"q{number}")
    assert len(it.state.active) > 5


# --- compositions -------------------------------------------------------------------------------

_NULL: dict[str, Callable[[], Drawloom]] = {
    "order": lambda: Drawloom(order=Order()),
    "admission": lambda: Drawloom(admission=Admission()),
    "cap": lambda: Drawloom(admission=Cap(3)),
    "residency": lambda: Drawloom(residency=Residency()),
    "bound": lambda: Drawloom(bound=Bound()),
    "housing": lambda: Drawloom(housing=Housing()),
    "all": lambda: Drawloom(
        order=Order(),
        admission=Admission(),
        residency=Residency(),
        bound=Bound(),
        housing=Housing(),
    ),
}


@pytest.mark.parametrize("part", _NULL)
def test_a_policy_runs_everything_without_a_part(part: str) -> None:
    rng = random.Random(5)
    jobs = [_job(f"p{i}", rng, lambda n: 1.0, float(i)) for i in range(10)]
    small = replace(machine("h200-8b"), kv_tokens=50_000, host_tokens=0)
    assert len(Simulation(small, _NULL[part](), jobs, False).run().ended) == 10


def test_without_an_order_the_first_come_is_the_first_served() -> None:
    it = one_fits(Drawloom(MEMORY_ALONE, order=Order()))
    it.submit("runs")
    it.submit("long", expect_steps=50.0)
    it.submit("short", expect_steps=1.0)
    assert admitted(it.end("runs")) == ["long"]


def test_a_cap_and_no_admission_are_what_they_say() -> None:
    for admission, several in ((Cap(3), 3), (Admission(), 7)):
        it = one_fits(Drawloom(MEMORY_ALONE, admission=admission))
        for number in range(7):
            it.submit(f"p{number}")
        assert len(it.state.active) == several


def test_parameters_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError):
        Drawloom(3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["own", *_NULL])
def test_asking_changes_nothing(part: str) -> None:
    it = one_fits(Drawloom(MEMORY_ALONE) if part == "own" else _NULL[part]())
    for number in range(4):
        _run(it, f"before{number}", 3, expect_steps=3.0)
    for number in range(4):
        it.submit(f"p{number}", expect_steps=float(number + 1), envs=("env",) if number else ())
        it.ready(f"p{number}")
    state, policy, now = it.state, it.policy, it.now + 1.0
    before = snapshot(state)
    ask_everything(policy, state, now)
    next(iter(policy.pause(state, now)), None)
    assert snapshot(state) == before
