"""LLM calls: leases, sizes while they run, preemptions, costs."""

from itertools import pairwise

import pytest

from drawloom.runtime.scheduler.actions import (
    StartStep,
)
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.events import (
    Decoded,
    Event,
    Preempted,
    ProgramEnded,
    StepFailed,
    StepFinished,
    StepReady,
)

from .harness import admitted, lease_of, three_fit


def test_the_oldest_program_s_calls_go_first() -> None:
    core = three_fit()
    core.submit("old")
    core.submit("new")
    (new,), (old,) = core.ready("new", 100, 1.0), core.ready("old", 100, 2.0)
    assert isinstance(new, StartStep)
    assert isinstance(old, StartStep)
    assert old.priority < new.priority


def test_kv_is_leased_for_as_long_as_the_tool_was_seen_to_take() -> None:
    core = three_fit()
    core.submit("p")
    now = 0.0
    for _ in range(20):
        core.ready("p", 100, now)
        lease = lease_of(core.done("p", 120, now + 1, "shell"))
        now += 5.0
    assert lease.ttl == pytest.approx(1.5 * 4.0, rel=0.02)
    assert lease.value > 0


def test_the_value_of_a_lease_follows_the_prefill_that_was_measured() -> None:
    core = three_fit()
    core.submit("p")
    values = []
    for seconds in (0.0, 100.0):
        core.ready("p", 100, 1.0)
        event = StepFinished(
            program="p",
            conversation="p",
            step="p#0",
            state="site",
            engine="e",
            context=120,
            calls=("t",),
            computed=100,
            seconds=seconds,
        )
        values.append(lease_of(core.handle(event, 2.0)).value)
    assert values[1] > 10 * values[0]


def test_a_long_answer_counts_while_it_is_said() -> None:
    core = three_fit()
    core.submit("long")
    core.ready("long", 100, 0.0)
    core.decoded("long", 800, 1.0)
    assert core.state.totals.private_tokens == core.state.totals.reserved_tokens == 800
    assert admitted(core.submit("next", 2.0)) == []
    assert admitted(core.decoded("long", 801, 3.0)) == [], "a token changes nothing"
    core.done("long", 805, 4.0, "tool", computed=100)
    assert core.state.totals.private_tokens == 805
    assert admitted(core.end("long", 5.0)) == ["next"]


def test_what_an_engine_said_late_is_not_counted() -> None:
    core = three_fit()
    core.submit("p")
    assert core.decoded("p", 500, 0.0) == []  # nothing of it runs
    core.ready("p", 100, 1.0)
    core.done("p", 120, 2.0, "tool", computed=100)
    core.decoded("p", 500, 3.0)
    assert core.state.totals.private_tokens == 120
    core.ready("p", 400, 4.0)
    core.decoded("p", 200, 5.0)
    assert core.state.totals.private_tokens == 400


def test_the_cost_of_a_token_is_that_of_all_that_was_said_though_some_was_heard_before() -> None:
    core = three_fit()
    core.submit("p")
    core.ready("p", 100, 0.0)
    core.decoded("p", 180, 4.0)
    event = StepFinished(
        program="p",
        conversation="p",
        step="p#0",
        state="site",
        engine="e",
        context=200,
        calls=("t",),
        computed=100,
        seconds=1.0,
        queued=0.0,
        service=11.0,
    )
    core.handle(event, 11.0)
    assert core.state.cost.step == pytest.approx(0.1)


@pytest.mark.parametrize("ends", ["it goes on", "it fails", "its program ends"])
def test_nobody_is_admitted_while_a_call_has_given_way(ends: str) -> None:
    core = three_fit()
    for name in ("runs", "gives way"):
        core.submit(name)
        core.ready(name, 100, 0.0)
    event = Preempted("gives way", "gives way#0", "e")
    for _ in range(2):
        assert core.handle(event, 1.0) == []
    assert admitted(core.submit("third", 2.0)) == []
    core.decoded("runs", 101, 3.0)
    assert "third" not in core.state.active
    after: dict[str, Event] = {
        "it goes on": Decoded("e", (("gives way", "gives way#0", 101),)),
        "it fails": StepFailed("gives way", "gives way#0"),
        "its program ends": ProgramEnded("gives way"),
    }
    assert admitted(core.handle(after[ends], 4.0)) == ["third"]
    assert core.handle(event, 5.0) == [] or ends == "it goes on"


def test_a_program_whose_call_failed_is_at_a_tool_boundary() -> None:
    core = three_fit()
    core.submit("p")
    core.ready("p", 100, 0.0)
    assert not core.state.programs["p"].at_tool_boundary
    core.handle(StepFailed("p", "p#0"), 1.0)
    assert core.state.programs["p"].at_tool_boundary
    assert core.state.totals.computing_programs == 0
    (start,) = core.ready("p", 100, 2.0)  # it may be tried again
    assert isinstance(start, StartStep)


def test_a_held_call_that_nobody_waits_for_any_more_is_not_started() -> None:
    core = three_fit(kv=300)
    core.submit("running")
    core.submit("held")
    assert core.ready("held", 100, 0.0) == []
    core.handle(StepFailed("held", "held#0"), 1.0)
    actions = core.end("running", 2.0)
    assert admitted(actions) == ["held"]  # it is new, and may make another
    assert not [a for a in actions if isinstance(a, StartStep)]


def test_costs_are_learned_from_calls_where_none_were_given() -> None:
    core = three_fit(kv=10**6)
    core.submit("p")
    for turn, computed in enumerate((1000, 30, 40, 2000, 25, 35) * 10):
        prefill, now = 0.02 + 1e-3 * computed, 100.0 * turn
        core.handle(
            StepReady(
                program="p",
                conversation="p",
                step=f"s{turn}",
                state="site",
                engine="e",
                prompt=5000,
                output=50,
            ),
            now,
        )
        event = StepFinished(
            program="p",
            conversation="p",
            step=f"s{turn}",
            state="site",
            engine="e",
            context=5050,
            calls=("t",),
            computed=computed,
            seconds=prefill,
            queued=0.0,
            service=prefill + 2.5,
        )
        core.handle(event, now + 5)
    assert core.state.cost.recompute(4000) == pytest.approx(4.0, rel=0.02)
    assert core.state.cost.decode(1, 0) == pytest.approx(0.05, rel=0.02)
    core.state.cost = given = CostModel(prefill=1.0)
    core.handle(
        StepReady(
            program="p",
            conversation="p",
            step="s",
            state="site",
            engine="e",
            prompt=5000,
            output=50,
        ),
        1e6,
    )
    core.handle(
        StepFinished(
            program="p",
            conversation="p",
            step="s",
            state="site",
            engine="e",
            context=5050,
            calls=(),
            computed=10,
            seconds=1.0,
            queued=0.0,
            service=2.0,
        ),
        1e6,
    )
    assert core.state.cost == given


def test_a_program_of_many_calls_is_judged_by_few_of_them() -> None:
    core = three_fit(kv=10**6)
    core.submit("p")
    for turn in range(1000):
        core.handle(
            StepReady(
                program="p",
                conversation="p",
                step=f"s{turn}",
                state="site",
                engine="e",
                prompt=100,
                output=50,
            ),
            float(turn),
        )
        event = StepFinished(
            program="p",
            conversation="p",
            step=f"s{turn}",
            state="site",
            engine="e",
            context=100,
            calls=("t",),
            service=1.0,
        )
        core.handle(event, float(turn))
    had = [had for had, _ in core.state.programs["p"].trail]
    assert len(had) < 64
    assert had[-1] > 900
    assert {b - a for a, b in pairwise(had)} == {had[0]}
