"""Which programs are admitted, and when."""

import pytest

from drawloom.runtime.scheduler.actions import (
    ReleaseKV,
    ScheduleTick,
)
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.events import (
    Expected,
    Forked,
    StepFailed,
    StepReady,
)

from .harness import KV, SchedulerHarness, admitted, three_fit


def test_programs_run_while_their_peaks_fit_and_no_longer() -> None:
    core = three_fit()
    names = [n for i in range(5) for n in admitted(core.submit(f"p{i}"))]
    assert names == ["p0", "p1", "p2"]
    assert admitted(core.end("p1", 1.0)) == ["p3"]


def test_beyond_memory_programs_run_while_the_engine_is_known_to_have_time_to_spare() -> None:
    core = three_fit(busy=0.85)
    names = [n for i in range(5) for n in admitted(core.submit(f"p{i}"))]
    assert names == ["p0", "p1", "p2"]  # no call has ended yet
    core.ready("p0", 100, 1.0)
    core.done("p0", 120, 2.0, "shell")
    load = core.state.engine_load
    load.busy, load.announced, load.work, load.cycle = 1.0, 0.0, 0.02, 2.0
    assert admitted(core.submit("more")) == []
    load.busy = 0.0
    assert admitted(core.submit("last")) == ["p3", "p4", "more", "last"]
    load.work = 1.0  # each would take half of the time
    assert [len(admitted(core.submit(f"q{i}"))) for i in range(3)] == [1, 0, 0]


def _answer(core: SchedulerHarness, name: str, now: float, seconds: float = 1.0) -> None:
    """A program makes one call, which asks for no tool."""
    core.ready(name, 300, now)
    core.done(name, 310, now + seconds, "client", computed=300)


def test_programs_that_answered_and_may_be_over_hold_up_nobody() -> None:
    core = three_fit()
    for number in range(20):
        assert admitted(core.submit(f"p{number}", number)) == [f"p{number}"]
        _answer(core, f"p{number}", number, 0.5)


@pytest.mark.parametrize("gap", [1.0, 0.1])
def test_programs_that_answered_keep_their_places_while_such_go_on(gap: float) -> None:
    core = three_fit()
    core.submit("a")
    for turn in range(10):
        _answer(core, "a", (1.0 + gap) * turn, 1.0)
    for name in "bc":
        core.submit(name, 30.0)
        _answer(core, name, 30.0, 0.01)
    core.ready("a", 300, 30.0)
    core.done("a", 310, 30.01, "client")
    assert admitted(core.submit("d", 30.02)) == []
    assert admitted(core.tick(30.0 + 2.5 * gap)) == []
    assert admitted(core.tick(30.1 + 3.5 * gap)) == ["d"]  # two leases of 1.5 gaps


def test_an_idle_engine_takes_more_once_that_is_worth_what_they_displace() -> None:
    core = three_fit(busy=0.85)
    core.state.cost = CostModel(prefill=0.01)
    core.state.engine_load.busy = 1.0
    for name in "abc":
        core.submit(name)
        core.ready(name, 300, 0.0)
        core.done(name, 310, 1.0, "bash", computed=300)  # all wait for a tool
    actions = core.submit("d", 1.0)
    assert admitted(actions) == []
    wakes = [action.at for action in actions if isinstance(action, ScheduleTick)]
    assert wakes == [pytest.approx(1.0 + 3.1)]
    assert admitted(core.tick(4.0)) == []
    assert admitted(core.tick(4.2)) == ["d"]


def test_with_host_memory_behind_it_half_as_much_again_is_promised() -> None:
    for host, several in ((0, 3), (10 * KV, 4)):
        core = three_fit(host=host)
        names = [n for i in range(9) for n in admitted(core.submit(f"p{i}"))]
        assert len(names) == several


def test_a_program_larger_than_the_machine_runs_alone() -> None:
    core = three_fit()
    assert admitted(core.submit("big", expect_tokens=5000)) == ["big"]
    assert admitted(core.submit("small")) == []


def test_the_baseline_admits_everybody_and_leases_nothing() -> None:
    core = three_fit(policy="fcfs-lru")
    assert [n for i in range(9) for n in admitted(core.submit(f"p{i}"))] == [
        f"p{i}" for i in range(9)
    ]
    core.ready("p0", 100, 1.0)
    assert core.done("p0", 120, 2.0, "shell") == []
    (release, *_) = core.end("p0", 3.0)
    assert isinstance(release, ReleaseKV)
    assert not release.evict


def test_priority_goes_before_arrival_and_a_deadline_makes_a_program_due() -> None:
    core = three_fit(kv=400)
    core.submit("first")
    core.submit("plain")
    core.submit("other")
    core.submit("urgent", deadline=5.0)
    core.submit("vip", priority=1)
    order = []
    for name, now in (("first", 1.0), ("vip", 2.0), ("plain", 6.0), ("urgent", 7.0)):
        order += admitted(core.end(name, now))
    assert order == ["vip", "plain", "urgent", "other"]


def test_what_is_declared_to_be_short_goes_first() -> None:
    core = three_fit()
    core.submit("running", expect_tokens=900)
    core.submit("long", expect_tokens=900, expect_steps=40.0)
    core.submit("short", expect_tokens=900, expect_steps=4.0)
    assert admitted(core.end("running", 1.0)) == ["short"]
    core.submit("medium", expect_tokens=900, expect_steps=20.0)
    core.handle(Expected("long", 2.0), 2.0)  # it knows better now
    assert admitted(core.end("short", 3.0)) == ["long"]


def test_programs_with_branches_wait_while_many_calls_run() -> None:
    core = three_fit(kv=10_000)
    core.submit("wide", expect_tokens=10)
    core.ready("wide", 10, 0.0)
    core.done("wide", 10, 1.0, "plan", computed=10)
    for branch in range(1, 33):
        core.handle(Forked("wide", "wide", f"wide:{branch}", "e"), 2.0)
        event = StepReady(
            program="wide",
            conversation=f"wide:{branch}",
            step=f"s{branch}",
            state="work",
            engine="e",
            prompt=11,
            output=5,
        )
        core.handle(event, 2.0)
    assert core.state.totals.running_calls == 32
    assert admitted(core.submit("alike", 3.0, expect_tokens=10)) == []
    assert admitted(core.handle(StepFailed("wide", "s1"), 4.0)) == ["alike"]


def test_programs_without_branches_are_as_many_as_memory_holds() -> None:
    core = three_fit(kv=10_000)
    for number in range(40):
        core.submit(f"p{number}", expect_tokens=10)
        core.ready(f"p{number}", 10, 0.0)
    assert core.state.totals.running_calls == len(core.state.active) == 40
