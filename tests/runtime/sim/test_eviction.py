"""The reference for eviction is the best there is on cases small enough to try everything, and
what is replayed against it is the engine's own cache."""

from dataclasses import replace
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.errors import EngineError
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.sim.eviction import Access, FrozenDrawloom, accesses, farthest, replay
from drawloom.runtime.sim.experiment import Scenario, evictions
from drawloom.runtime.sim.presets import machine
from drawloom.runtime.sim.simulation import Simulation
from drawloom.runtime.sim.synthetic import generate
from drawloom.runtime.sim.workload import Mix
from tests.lanes import examples

# a tree of prefixes: each number's chain, its own last
CHAINS = ((0,), (0, 1), (0, 1, 2), (0, 3), (0, 3, 4), (5,), (5, 6), (5, 6, 7))


def _serial(chains: list[tuple[int, ...]]) -> list[Access]:
    return [
        Access(
            str(n),
            str(chain[-1]),
            "a",
            units=chain,
            prompt=len(chain),
            ready=n,
            start=n,
            first=n + 0.2,
            end=n + 0.5,
            calls=("t",),
            last=False,
        )
        for n, chain in enumerate(chains)
    ]


def _best(chains: list[tuple[int, ...]], capacity: int) -> int:
    """The fewest that any choice of what to keep computes again; chains stay closed."""
    seen_before = [set().union(*chains[:n]) if n else set() for n in range(len(chains))]

    @cache
    def cost(at: int, resident: frozenset[int]) -> int:
        if at == len(chains):
            return 0
        wanted = frozenset(chains[at])
        misses = len((wanted - resident) & seen_before[at])
        others = resident - wanted
        best = None
        for size in range(min(len(others), capacity - len(wanted)) + 1):
            for kept in combinations(sorted(others), size):
                after = wanted | set(kept)
                if all(set(chain) <= after for chain in CHAINS if chain[-1] in after):
                    found = cost(at + 1, frozenset(after))
                    best = found if best is None else min(best, found)
        assert best is not None
        return misses + best

    return cost(0, frozenset())


@settings(max_examples=examples(150), deadline=None)
@given(chains=st.lists(st.sampled_from(CHAINS), max_size=8), capacity=st.integers(3, 6))
def test_giving_up_what_is_used_last_is_the_best_there_is(
    chains: list[tuple[int, ...]], capacity: int
) -> None:
    assert farthest(_serial(chains), capacity) == _best(chains, capacity)


def test_calls_that_cannot_have_been_there_together_are_refused() -> None:
    both = [
        Access(
            n,
            n,
            "a",
            units=tuple(range(3 * at, 3 * at + 3)),
            prompt=3,
            ready=0,
            start=at / 10,
            first=0.5,
            end=1,
            calls=(),
            last=True,
        )
        for at, n in enumerate("ab")
    ]
    assert farthest(both, 6) == 0
    with pytest.raises(EngineError, match="in use at once"):
        farthest(both, 5)


def test_a_replay_of_the_same_policy_computes_again_what_the_run_did() -> None:
    jobs = Mix(tuple(generate("swe", 12, seed=3)), 8, 16).draw(0, 100.0)
    small = replace(machine("h200-8b"), kv_tokens=200_000, host_tokens=0, reserve=True)
    simulation = Simulation(small, make_policy("fcfs-lru"), jobs, False, record=True)
    outcome = simulation.run()
    assert simulation.log is not None
    log = accesses(simulation.log, small.unit)
    assert len(log) == sum(len(job.calls) for job in jobs)
    least = farthest(log, small.kv_tokens // 1024 * 16)
    again = replay(log, small, make_policy("fcfs-lru"))
    assert again == pytest.approx(outcome.recomputed / 64, rel=0.02)
    assert 0 < least <= again
    assert replay(log, small, FrozenDrawloom()) >= least


def test_policies_are_compared_with_the_reference() -> None:
    found = evictions(Scenario("function", seeds=1, programs=6))
    assert found["farthest"]["ratio"] == 1.0
    assert set(found) == {"farthest", "fcfs-lru", "drawloom"}
