"""The live replay: what is scaled stays a program, all of them end, nothing is left behind."""

from dataclasses import replace

import pytest

from drawloom.runtime.bench.replay_scaling import Replay, scaled
from drawloom.runtime.bench.scheduling.workflow import Bench, kendall
from drawloom.runtime.sim.synthetic import generate


@pytest.mark.parametrize("kind", ["swe", "web", "graphs"])
@pytest.mark.parametrize("tokens", [1 / 8, 1 / 100])
def test_scaled_programs_are_ones_that_could_be(kind: str, tokens: float) -> None:
    for job in scaled(generate(kind, 16, seed=2), tokens, 0.01):
        assert 0 <= job.shared < job.calls[0].prompt
        for at, call in enumerate(job.calls):
            base = job.base(at)
            assert 0 <= call.reuse < call.prompt
            assert call.output >= 1
            assert base < 0 or call.reuse <= job.calls[base].context


def test_kendall_looks_at_pairs_that_differ_by_a_tenth() -> None:
    live = {"a": 1.0, "b": 1.05, "c": 2.0, "d": 4.0}
    assert kendall(live, {"a": 2.0, "b": 1.0, "c": 3.0, "d": 4.0}) == 1.0
    assert kendall(live, {"a": 1.0, "b": 1.0, "c": 5.0, "d": 4.0}) == pytest.approx(0.6)
    assert kendall(live, {"a": 9.0, "b": 8.0, "c": 5.0, "d": 4.0}) == -1.0
    assert kendall({"a": 1.0, "b": 1.05}, {"a": 2.0, "b": 1.0}) == 1.0


@pytest.mark.slow
def test_programs_are_replayed_live_and_simulated() -> None:
    bench = Bench(Replay("graphs", there=3, count=4, tokens=1 / 64), generate("graphs", 6))
    for policy in ("fcfs-lru", "drawloom"):
        live, simulated = bench.live(policy), bench.simulated(policy)
        assert live["programs"] == simulated["programs"] == 4
        assert live["steps_per_min"] > 0
        assert live["hit_share"] > 0  # branches begin with what their trunk left behind
        assert 0 < live["jct_p50_s"] <= live["jct_p99_s"]
        assert live["hit_share"] <= 1
        assert 0 < live["fairness"] <= 1
        assert (live["held_idle_block_s"] > 0) == (policy == "drawloom")


def test_tools_wait_for_environments_that_nothing_has_warmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Bench, "_measure_overheads", lambda self, context: None)  # half a minute
    jobs = [
        replace(
            job,
            env=job.id,
            env_start=40.0,
            calls=tuple(replace(call, busy=call.gap) for call in job.calls[:6]),
        )
        for job in generate("swe", 6)
    ]
    bench = Bench(Replay("swe", there=2, count=6, tokens=1 / 256), jobs)  # room to warm 2 of 6
    rows = {name: bench.live(name) for name in ("fcfs-lru", "drawloom")}
    assert all(row["programs"] == 6 for row in rows.values())
    assert rows["fcfs-lru"]["env_idle_s"] == 0
    assert rows["fcfs-lru"]["env_stall_s"] > 0
    assert bench.simulated("fcfs-lru")["jct_mean_s"] > bench.seconds * 40.0
