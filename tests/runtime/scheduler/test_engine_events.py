"""Engines that come, drain and fail."""

from drawloom.runtime.scheduler.actions import (
    StartStep,
)
from drawloom.runtime.scheduler.events import (
    EngineDown,
    EngineDrain,
    EngineUp,
    Forked,
    StepFailed,
    StepReady,
)
from drawloom.runtime.scheduler.state import Totals

from .harness import KV, admitted, started_steps, three_fit


def test_calls_of_an_engine_that_goes_down_are_started_again_when_there_is_one() -> None:
    core = three_fit()
    core.submit("p")
    core.ready("p", 100, 0.0)
    core.done("p", 200, 1.0, "t", computed=100)
    core.ready("p", 210, 2.0)
    assert core.handle(EngineDown("e"), 3.0) == []
    program, state = core.state.programs["p"], core.state
    assert (state.totals, state.capacity, program.running_calls) == (Totals(), 0, 0)
    assert program.tokens == 210, "what it has to compute again is known"
    assert admitted(core.submit("q", 3.0)) == []
    again = core.handle(EngineUp("e", KV), 4.0)
    assert started_steps(again) == ["p#1"]
    assert admitted(again) == ["q"]
    assert state.totals.private_tokens == 210
    assert core.handle(EngineDown("other"), 5.0) == core.handle(EngineDrain("other"), 5.0) == []


def test_a_call_that_failed_with_its_engine_is_not_started_again() -> None:
    core = three_fit()
    core.submit("p")
    core.ready("p", 100, 0.0)
    core.handle(EngineDown("e"), 1.0)
    core.handle(StepFailed("p", "p#0"), 1.0)
    assert started_steps(core.handle(EngineUp("e", KV), 2.0)) == []
    assert "p" in core.state.wait_queue.programs  # it has nothing to run


def test_the_calls_of_an_engine_that_drains_end_and_no_others_begin_until_it_is_back() -> None:
    core = three_fit()
    core.submit("p")
    core.ready("p", 100, 0.0)
    core.handle(Forked("p", "p", "p:1", "e"), 0.0)
    core.handle(EngineDrain("e"), 1.0)
    branch = StepReady(
        program="p", conversation="p:1", step="s1", state="site", engine="e", prompt=110, output=50
    )
    assert core.handle(branch, 1.0) == []
    assert "p" in core.state.active, "it runs"
    assert admitted(core.submit("q", 1.0)) == []
    core.done("p", 120, 2.0, "t", computed=100)
    assert core.state.active == {}
    back = core.handle(EngineUp("e", KV), 3.0)
    assert (started_steps(back), admitted(back)) == (["s1"], ["q"])


def test_an_engine_that_is_back_before_a_boundary_gets_what_was_kept_from_it() -> None:
    core = three_fit()
    core.submit("p")
    core.ready("p", 100, 0.0)
    core.handle(Forked("p", "p", "p:1", "e"), 0.0)
    core.handle(EngineDrain("e"), 1.0)
    core.handle(
        StepReady(
            program="p",
            conversation="p:1",
            step="s1",
            state="site",
            engine="e",
            prompt=110,
            output=50,
        ),
        1.0,
    )
    assert started_steps(core.handle(EngineUp("e", KV), 2.0)) == ["s1"]


def test_of_two_engines_in_one_world_the_other_takes_over() -> None:
    core = three_fit()
    core.handle(EngineUp("f", KV), 0.0)
    core.submit("p")
    core.ready("p", 100, 0.0)
    (start,) = core.handle(EngineDown("e"), 1.0)
    assert isinstance(start, StartStep)
    assert start.engine == "f"
    assert core.state.capacity == KV
    core.done("p", 120, 2.0, "t", computed=100)
    (again,) = core.ready("p", 130, 3.0)  # whoever sends it does not know yet
    assert isinstance(again, StartStep)
    assert again.engine == "f"


def test_an_engine_that_is_up_again_has_what_it_says_and_not_both() -> None:
    core = three_fit()
    for _ in range(3):
        core.handle(EngineUp("e", 2 * KV, 5 * KV), 0.0)
    assert (core.state.capacity, core.state.host_tokens) == (2 * KV, 5 * KV)
