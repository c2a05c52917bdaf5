"""New programs are looked at before the large ones of them are gone on with."""

from dataclasses import replace

import pytest

from drawloom.graph.execution_graph import END, START, ExecutionGraph
from drawloom.graph.program_stats import ProgramSummary
from drawloom.runtime.scheduler import Scheduler
from drawloom.runtime.scheduler.actions import Action, StartStep
from drawloom.runtime.scheduler.events import (
    EngineUp,
    Expected,
    Forked,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
)
from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters

PEAK = 400
FULL = Parameters(busy=-1.0)  # no engine is as little busy: memory alone says how many run


def _core() -> Scheduler:
    """Room for two programs as usual, which has `wide` ones before: they plan, and then branch into
    10 or 200 calls of a second each."""
    core = Scheduler(Drawloom(FULL))
    core.handle(EngineUp("e", int(2.5 * PEAK)), 0.0)
    graph = core.state.graph("wide")
    _branches(graph)
    for number in range(20):
        calls = 10 if number % 2 else 200
        summary = ProgramSummary(PEAK, float(calls), 100.0, steps=calls, size_known_at=(1, 1.0))
        graph.finished(replace(summary, declaration_growth=calls / 105))
    return core


def _branches(graph: ExecutionGraph) -> None:
    for _ in range(20):
        graph.transitions.observe(START, "plan")
        graph.transitions.observe(graph.transitions.forked("plan"), "work")
        graph.transitions.observe("work", END)
        graph.transitions.observe("plan", END)


def _submit(core: Scheduler, name: str, steps: float | None = None) -> list[Action]:
    about = ProgramSubmitted(name, "wide", expect_tokens=PEAK, expect_steps=steps)
    return core.handle(about, 0.0)


def _plan(core: Scheduler, name: str) -> None:
    core.handle(StepReady(name, name, f"{name}#0", "plan", "e", 10, 5), 1.0)
    core.handle(StepFinished(name, name, f"{name}#0", "plan", "e", 15, ("plan",), 10), 2.0)


def _fork(core: Scheduler, name: str, branches: int) -> list[Action]:
    for branch in range(branches):
        core.handle(Forked(name, name, f"{name}.{branch}", "e"), 3.0)
    return [
        action
        for branch in range(branches)
        for action in core.handle(
            StepReady(name, f"{name}.{branch}", f"{name}.{branch}#0", "work", "e", 16, 5), 3.0
        )
    ]


def test_a_look_takes_the_memory_of_a_look() -> None:
    core = _core()
    _submit(core, "first")
    assert core.state.programs["first"].reserved_tokens == PEAK  # nobody waits for it: no look
    _submit(core, "second")
    _submit(core, "third")
    looked = [core.state.programs[name] for name in ("second", "third")]
    assert [(p.active, p.probation_calls, p.reserved_tokens) for p in looked] == [(True, 1, 0)] * 2


def test_where_nobody_waits_it_goes_on_at_its_next_call_and_is_promised_what_is_usual() -> None:
    core = _core()
    _submit(core, "first")
    _submit(core, "second")
    _plan(core, "second")
    program = core.state.programs["second"]
    assert (program.active, program.probation_calls, program.reserved_tokens) == (False, 0, 0)
    core.handle(StepReady("second", "second", "second#1", "work", "e", 20, 5), 3.0)
    assert (program.active, program.probation_calls, program.reserved_tokens) == (True, 0, PEAK)


def test_what_shows_that_it_is_large_waits_for_what_is_small() -> None:
    core = _core()
    core.handle(ProgramSubmitted("running", "plain", expect_tokens=PEAK), 0.0)
    for name in ("large", "small", "next"):
        _submit(core, name)
    core.handle(ProgramSubmitted("more", "plain", expect_tokens=2 * PEAK), 0.0)
    for name in ("large", "small", "next"):
        _plan(core, name)
    held = core.state.wait_queue.programs
    assert set(held) == {"large", "small", "next", "more"}
    assert _fork(core, "large", 20) == []
    assert _fork(core, "small", 2) == []
    costs = {name: core.policy.rank(core.state, held[name])[1] for name in ("large", "small")}
    assert costs["large"] == pytest.approx(20.0, rel=0.1)
    assert costs["small"] == pytest.approx(2.0, rel=0.3)
    core.handle(ProgramEnded("running"), 4.0)
    assert set(core.state.active) == {"more"}
    actions = core.handle(ProgramEnded("more"), 5.0)
    started = [action.program for action in actions if isinstance(action, StartStep)]
    assert started == ["small"] * 2 + ["large"] * 20
    assert set(core.state.active) == {"small", "large"}  # the third has nothing to run


@pytest.mark.parametrize(("says", "looks"), [(True, True), (False, False)])
def test_declared_programs_are_looked_at_where_they_say_more_on_their_way(
    says: bool, looks: bool
) -> None:
    core = Scheduler(Drawloom(FULL))
    core.handle(EngineUp("e", 10 * PEAK), 0.0)
    graph = core.state.graph("wide")
    for number in range(20):
        outgrew = 0.1 + number % 2 if says else 1.0
        summary = ProgramSummary(PEAK, 100.0 * outgrew, 100.0, steps=50, size_known_at=(1, 1.0))
        graph.finished(replace(summary, declaration_growth=outgrew))
    _submit(core, "first", 50.0)
    _submit(core, "second", 50.0)
    assert (core.state.programs["second"].probation_calls == 1) is looks


def test_what_declared_programs_say_first_and_last_is_learned() -> None:
    core = Scheduler(Drawloom(FULL))
    core.handle(EngineUp("e", 10 * PEAK), 0.0)
    _submit(core, "p", 40.0)
    _plan(core, "p")
    core.handle(Expected("p", 9.0), 3.0)
    program = core.state.programs["p"]
    assert (program.declared_at_start, program.declared_calls, program.declaration_growth) == (
        40.0,
        10.0,
        0.25,
    )
    assert program.size_known_at == (1, 0.0)
    core.handle(Expected("p", 19.0), 4.0)
    assert program.declaration_growth == 0.5
    core.handle(ProgramEnded("p"), 5.0)
    assert core.state.graph("wide").stats.declared_probe.saved() == [(1, 0.0, 0.5)]


def test_branches_before_the_first_call_show_nothing() -> None:
    core = _core()
    _submit(core, "p")
    core.handle(StepReady("p", "p", "p#0", "plan", "e", 10, 5), 1.0)
    core.handle(Forked("p", "p", "p.1", "e"), 1.0)
    assert core.state.programs["p"].size_known_at is None


def test_a_look_ends_when_there_are_branches_however_few_calls_there_were() -> None:
    core = _core()
    graph = core.state.graph("wide")
    for _ in range(40):
        graph.finished(ProgramSummary(PEAK, 100.0, 100.0, steps=50, size_known_at=(5, 1.0)))
    core.handle(ProgramSubmitted("running", "plain", expect_tokens=PEAK), 0.0)
    graph.finished(ProgramSummary(PEAK, 10.0, 100.0, steps=50, size_known_at=(5, 1.0)))
    _submit(core, "p")
    program = core.state.programs["p"]
    assert program.probation_calls == 5
    _plan(core, "p")
    assert program.probation_calls == 5
    core.handle(Forked("p", "p", "p.0", "e"), 3.0)
    core.handle(StepReady("p", "p.0", "p.0#0", "work", "e", 16, 5), 3.0)
    event = StepFinished("p", "p.0", "p.0#0", "work", "e", 20, ("tool",), 4)
    core.handle(event, 4.0)
    assert program.probation_calls == 0
