"""New programs are probed before the large ones of them go on."""

from dataclasses import replace

import pytest

from drawloom.graph.execution_graph import END, START, ExecutionGraph
from drawloom.graph.program_stats import ProgramSummary
from drawloom.runtime.scheduler.actions import Action, StartStep
from drawloom.runtime.scheduler.events import (
    Expected,
    Forked,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
)

from .harness import SchedulerHarness

PEAK = 400


def _core() -> SchedulerHarness:
    """Room for two programs as usual, which has `wide` ones before: they plan, and then branch into
    10 or 200 calls of a second each."""
    core = SchedulerHarness(kv=int(2.5 * PEAK), expect_tokens=PEAK)
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


def _submit(core: SchedulerHarness, name: str, steps: float | None = None) -> list[Action]:
    return core.submit(name, 0.0, agent="wide", expect_steps=steps)


def _plan(core: SchedulerHarness, name: str) -> None:
    core.ready(name, 10, 1.0, state="plan")
    core.done(name, 15, 2.0, "plan", computed=10, state="plan")


def _fork(core: SchedulerHarness, name: str, branches: int) -> list[Action]:
    for branch in range(branches):
        core.handle(Forked(name, name, f"{name}.{branch}", "e"), 3.0)
    return [
        action
        for branch in range(branches)
        for action in core.handle(
            StepReady(
                program=name,
                conversation=f"{name}.{branch}",
                step=f"{name}.{branch}#0",
                state="work",
                engine="e",
                prompt=16,
                output=5,
            ),
            3.0,
        )
    ]


def test_a_probe_takes_the_memory_of_a_probe() -> None:
    core = _core()
    _submit(core, "first")
    assert core.state.programs["first"].reserved_tokens == PEAK  # nobody waits for it: no probe
    _submit(core, "second")
    _submit(core, "third")
    probed = [core.state.programs[name] for name in ("second", "third")]
    assert [(p.active, p.probation_calls, p.reserved_tokens) for p in probed] == [(True, 1, 0)] * 2


def test_where_nobody_waits_it_goes_on_at_its_next_call_and_is_promised_what_is_usual() -> None:
    core = _core()
    _submit(core, "first")
    _submit(core, "second")
    _plan(core, "second")
    program = core.state.programs["second"]
    assert (program.active, program.probation_calls, program.reserved_tokens) == (False, 0, 0)
    core.handle(
        StepReady(
            program="second",
            conversation="second",
            step="second#1",
            state="work",
            engine="e",
            prompt=20,
            output=5,
        ),
        3.0,
    )
    assert (program.active, program.probation_calls, program.reserved_tokens) == (True, 0, PEAK)


def test_a_program_found_to_be_large_waits_for_a_small_one() -> None:
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


@pytest.mark.parametrize(("says", "probes"), [(True, True), (False, False)])
def test_declared_programs_are_probed_where_they_say_more_on_their_way(
    says: bool, probes: bool
) -> None:
    core = SchedulerHarness(kv=10 * PEAK, expect_tokens=PEAK)
    graph = core.state.graph("wide")
    for number in range(20):
        outgrew = 0.1 + number % 2 if says else 1.0
        summary = ProgramSummary(PEAK, 100.0 * outgrew, 100.0, steps=50, size_known_at=(1, 1.0))
        graph.finished(replace(summary, declaration_growth=outgrew))
    _submit(core, "first", 50.0)
    _submit(core, "second", 50.0)
    assert (core.state.programs["second"].probation_calls == 1) is probes


def test_what_declared_programs_say_first_and_last_is_learned() -> None:
    core = SchedulerHarness(kv=10 * PEAK, expect_tokens=PEAK)
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


def test_branches_before_the_first_call_reveal_nothing() -> None:
    core = _core()
    _submit(core, "p")
    core.handle(
        StepReady(
            program="p", conversation="p", step="p#0", state="plan", engine="e", prompt=10, output=5
        ),
        1.0,
    )
    core.handle(Forked("p", "p", "p.1", "e"), 1.0)
    assert core.state.programs["p"].size_known_at is None


def test_a_probe_ends_when_there_are_branches_however_few_calls_there_were() -> None:
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
    core.handle(
        StepReady(
            program="p",
            conversation="p.0",
            step="p.0#0",
            state="work",
            engine="e",
            prompt=16,
            output=5,
        ),
        3.0,
    )
    event = StepFinished(
        program="p",
        conversation="p.0",
        step="p.0#0",
        state="work",
        engine="e",
        context=20,
        calls=("tool",),
        computed=4,
    )
    core.handle(event, 4.0)
    assert program.probation_calls == 0
