"""A sandbox host in virtual time: places and slots are never overdrawn, nobody waits for ever."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.policies import make_policy, policy_names
from drawloom.runtime.sim.coscheduling import compare_units
from drawloom.runtime.sim.experiment import Scenario
from drawloom.runtime.sim.presets import machine
from drawloom.runtime.sim.sim_host import CLAIMS, SandboxSpec, SimHost
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.workload import Call, Job

H200 = machine("h200-8b")


def _job(
    name: str, steps: int = 3, arrival: float = 0.0, env: str = "image", image: float = 1.0
) -> Job:
    calls, context = [], 0
    for _ in range(steps):
        calls.append(Call(context + 500, context, 50, 4.0, "bash", busy=3.0))
        context += 550
    return Job(
        name, "agent", tuple(calls), arrival=arrival, env=env, env_start=10.0, image_gb=image
    )


class Clock:
    """An agenda that is worked off by `pass_to`."""

    def __init__(self) -> None:
        self.host: SimHost | None = None
        self.due_at: list[tuple[float, int, Callable[[Any], None], object]] = []

    def at(self, when: float, do: Callable[[Any], None], what: object) -> None:
        self.due_at.append((when, len(self.due_at), do, what))

    def pass_to(self, now: float) -> None:
        assert self.host is not None
        while ready := sorted((d for d in self.due_at if d[0] <= now), key=lambda d: d[:2]):
            self.due_at.remove(ready[0])
            self.host.now = ready[0][0]
            ready[0][2](ready[0][3])
        self.host.now = now


class Log:
    """Who was heard, and when."""

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self.heard: list[tuple[str, float]] = []

    def of(self, name: str) -> Callable[[], None]:
        return lambda: self.heard.append((name, self.host.now))


def _host(**rooms: Any) -> tuple[SimHost, Clock]:
    clock = Clock()
    clock.host = SimHost(SandboxSpec(**{"slots": 1, "tools": 1, **rooms}), clock.at)
    return clock.host, clock


def test_an_environment_waits_for_its_image_once_and_starts_in_its_seconds() -> None:
    host, clock = _host(slots=2, pull=0.5)
    log = Log(host)
    for name in ("a", "b"):
        host.claim(_job(name))
        host.when_ready(_job(name), log.of(name))
    clock.pass_to(100.0)
    assert log.heard == [("a", 12.0), ("b", 12.0)]  # 1 GB at 0.5 GB/s, then 10 s
    assert host.counters.stall == 24.0


def test_environments_start_a_few_at_a_time_and_images_come_one_after_the_other() -> None:
    host, clock = _host(slots=3, starts=1, pull=1.0)
    log = Log(host)
    for name in ("a", "b", "c"):
        host.claim(_job(name, env=name))
        host.when_ready(_job(name), log.of(name))
    clock.pass_to(100.0)
    assert log.heard == [("a", 11.0), ("b", 21.0), ("c", 31.0)]


def test_a_place_is_free_again_when_its_program_is_gone_or_was_put_aside() -> None:
    host, clock = _host(park=2.0, restart=1.0)
    log = Log(host)

    def claim(name: str) -> None:
        host.claim(_job(name, image=0.0))
        host.when_ready(_job(name, image=0.0), log.of(name))

    claim("a")
    clock.pass_to(10.0)
    claim("b")
    host.park("a")
    clock.pass_to(50.0)
    claim("a")  # waits for b's place
    host.claim(_job("c", image=0.0))
    host.release("c")  # before it had one
    host.claim(_job("d", image=0.0))
    host.park("d")  # nothing ran in it yet
    host.release("b")
    clock.pass_to(100.0)
    assert log.heard == [("a", 10.0), ("b", 22.0), ("a", 51.0)]


def test_a_program_that_goes_while_its_environment_starts_leaves_its_place() -> None:
    host, clock = _host()
    host.claim(_job("a", image=0.0))
    host.release("a")
    host.claim(_job("b", image=0.0))
    log = Log(host)
    host.when_ready(_job("b", image=0.0), log.of("b"))
    clock.pass_to(100.0)
    assert log.heard == [("b", 20.0)]


def test_tools_run_as_many_as_there_are_slots_the_lowest_first() -> None:
    host, clock = _host(tools=1)
    log = Log(host)
    for priority, name in ((0.0, "running"), (2.0, "late"), (1.0, "soon")):
        host.run(5.0, priority, log.of(name))
    clock.pass_to(100.0)
    assert log.heard == [("running", 5.0), ("soon", 10.0), ("late", 15.0)]
    assert host.counters.queued == 5.0 + 10.0


@pytest.mark.parametrize("policy", policy_names())
@settings(max_examples=8, deadline=None)
@given(
    slots=st.integers(1, 3),
    tools=st.integers(1, 2),
    claims=st.sampled_from(CLAIMS),
    park=st.sampled_from([None, 2.0]),
    steps=st.lists(st.integers(1, 6), min_size=1, max_size=6),
)
def test_everybody_ends_under_every_policy_and_gives_everything_back(
    policy: str, slots: int, tools: int, claims: str, park: float | None, steps: list[int]
) -> None:
    jobs = [_job(f"p{n}", count, 2.0 * n, f"image-{n % 2}") for n, count in enumerate(steps)]
    rooms = SandboxSpec(slots, tools, claims=claims, park=park)
    simulation = Simulation(H200, make_policy(policy), jobs, host=True, sandbox=rooms)
    outcome = simulation.run()
    assert len(outcome.ended) == len(jobs)
    state = simulation.cores[0].state
    assert not state.programs
    assert sum(state.env_capacity.used_slots.values()) == state.totals.computing_programs == 0
    assert state.env_capacity.paused_residents == {}
    counters = outcome.host
    assert counters is not None
    assert counters.ran == pytest.approx(3.0 * (sum(steps) - len(steps)))
    assert counters.ran <= tools * outcome.seconds
    assert counters.taken <= slots * outcome.seconds + 1e-6
    for one in outcome.ended:
        if len(one.job.calls) > 1:
            assert one.jct > 10.0  # nobody's tool ran before its environment had started


def test_a_workload_without_environments_is_refused() -> None:
    with pytest.raises(ConfigError, match="environments"):
        compare_units(Scenario("swe", seeds=1, programs=2))


def test_programs_with_environments_are_compared_as_units(tmp_path: Any) -> None:
    import gzip
    import json

    step = {"in": 900, "reuse": 500, "out": 40, "end": "tool", "gap": 3.0}
    step["tools"] = [{"name": "bash", "s": 2.0}]
    row = {"id": "a", "class": "swe", "model": "m", "env_start_s": 5.0, "image_gb": 1.0}
    row["steps"] = [step] * 4 + [{**step, "end": "final", "gap": 0}]
    path = tmp_path / "trace.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        lines.write("\n".join(json.dumps({**row, "id": name}) for name in "abc"))
    found = compare_units(replace(Scenario(str(path), seeds=1, programs=6), pressure=200.0))
    assert {"drawloom", "static-cap", "clairvoyant", "fcfs-lru"} < set(found)
    assert {"drawloom, nothing parked", "drawloom, tools by arrival"} < set(found)
    assert all(row["programs"] == 6 and row["env_taken_s"] > 0 for row in found.values())
