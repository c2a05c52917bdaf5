"""ThunderAgent's pause and resume, faithfully."""

import pytest

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.policies import make_policy

from .harness import started_steps, with_costs


def test_thunder_pauses_the_smallest_idle_program_on_its_clock() -> None:
    it = with_costs("thunder", kv=1000)
    for name, tokens in (("big", 400), ("small", 200)):
        it.start(name, tokens)
        it.done(name, tokens + 200, 1.0)
    assert it.state.programs["small"].active  # over the top, but the clock has not ticked
    it.tick(5.0)
    assert not it.state.programs["small"].active
    assert it.state.programs["big"].active
    assert started_steps(it.ready("small", 410, 6.0)) == []


def test_thunder_marks_everything_that_computes_while_anything_overflows() -> None:
    it = with_costs("thunder", kv=1000)
    steps = {name: it.start(name, 200) for name in "abc"}
    it.state.programs["a"].conversations["a"].context = 0  # as an estimate that was wrong
    it.state.resize(it.state.programs["a"], it.state.programs["a"].conversations["a"], 450, 0)
    it.tick(5.0)
    for name in "abc":
        it.done(name, 210, 6.0, step=steps[name])
    assert not it.state.active


def test_thunder_passes_over_who_does_not_fit() -> None:
    it = with_costs("thunder", kv=1000)
    it.start("runs", 500)
    it.submit("large")
    it.ready("large", 700)
    it.submit("small")
    assert started_steps(it.ready("small", 200)) == []  # somebody waits, so the clock decides
    assert started_steps(it.tick(5.0)) == [it.last_step]


def test_thunder_resumes_nobody_into_what_it_pauses_on_the_same_tick() -> None:
    it = with_costs("thunder", kv=1000)
    it.start("big", 500)
    it.start("idle", 200)
    it.done("idle", 300, 1.0)
    it.submit("new")
    it.ready("new", 50, 1.0)
    it.state.resize(it.state.programs["big"], it.state.programs["big"].conversations["big"], 600, 0)
    assert started_steps(it.tick(5.0)) == []  # 600 + 300 + slack overflow: resume, then pause
    assert not it.state.programs["idle"].active
    assert started_steps(it.tick(10.0)) == [it.last_step]


def test_thunder_in_dynamo_counts_host_memory_pauses_at_a_threshold_and_resumes_below_it() -> None:
    def active(host: int, tokens: int) -> bool:
        it = with_costs("thunder-dynamo", kv=1000, host=host)
        it.start("a", 300)
        it.done("a", tokens, 0.5)
        it.tick(1.0)
        return it.state.programs["a"].active

    assert active(0, 840)
    assert not active(0, 860)  # with 100 of slack over 0.95
    assert active(4000, 860)
    it = with_costs("thunder-dynamo:0.5", kv=1000, host=1000)
    it.start("a", 800)
    it.submit("b")
    assert started_steps(it.ready("b", 280, 0.0)) == []  # 900 + 380 > 0.85 x 1500
    it = with_costs("thunder-dynamo:0.5", kv=1000, host=1000)
    it.start("a", 800)
    it.start("b", 270)
    with pytest.raises(ConfigError):
        make_policy("thunder-dynamo:2")


def test_thunder_with_decay_counts_idle_programs_for_less() -> None:
    for policy, comes in (("thunder", False), ("thunder-decay", True)):
        it = with_costs(policy, kv=1000)
        it.start("idle", 700)
        it.done("idle", 700, 0.0)
        it.submit("new", 1.0)
        assert started_steps(it.ready("new", 300, 1.0)) == []
        assert bool(started_steps(it.tick(20.0))) is comes
