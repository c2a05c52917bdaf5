"""The scheduler as a whole: harmless events, policies by name, its cost."""

import pytest

from drawloom.errors import ConfigError
from drawloom.runtime.bench.scheduling.scheduler import Shape, held_bytes, measure
from drawloom.runtime.scheduler.actions import (
    StartStep,
)
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    Decoded,
    Expected,
    Forked,
    Preempted,
    ProgramEnded,
    StepFailed,
    StepFinished,
    StepReady,
    ToolNamed,
    ToolStarted,
)
from drawloom.runtime.scheduler.policies import make_policy, policy_names

from .harness import (
    three_fit,
)


def test_unknown_doubled_and_late_events_are_harmless() -> None:
    core = three_fit()
    for event in (
        Expected("x", 3.0),
        StepReady(
            program="x", conversation="x", step="s", state="site", engine="e", prompt=1, output=1
        ),
        StepFinished(
            program="x", conversation="x", step="s", state="site", engine="e", context=1, calls=()
        ),
        StepFailed("x", "s"),
        Decoded("e", (("x", "s", 5),)),
        Preempted("x", "s", "e"),
        ToolNamed("x", "t", "env"),
        ToolStarted("x", "x", "t", None),
        Forked("x", "a", "b", "e"),
        ConversationEnded("x", "a"),
        ProgramEnded("x"),
    ):
        assert [a for a in core.handle(event, 1.0) if not isinstance(a, StartStep)] == []
    core.submit("p")
    assert core.submit("p") == []


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    assert {"drawloom", "fcfs-lru", "offload-lru"} <= set(policy_names())
    with pytest.raises(ConfigError, match="drawloom, fcfs-lru"):
        make_policy("magic")


@pytest.mark.parametrize("shape", [Shape(60), Shape(1, 60), Shape(60, 1, 60), Shape(60, tools=500)])
@pytest.mark.parametrize("policy", ["drawloom", "fcfs-lru", "thunder", "continuum"])
def test_the_load_of_the_benchmark_keeps_every_policy_busy(policy: str, shape: Shape) -> None:
    found = measure(policy, 200, shape, running=8)
    assert found["live"] == shape.live
    assert found["conversations"] >= 60 or shape.live == 60
    assert found["running"] > 0
    assert 0 < found["p99_ms"] <= found["max_ms"]


def test_a_held_program_takes_little_memory() -> None:
    assert 0 < held_bytes("drawloom", 500) <= 2_000
