"""The sandbox bench measures what it says and leaves nothing."""

import pytest

from drawloom.runtime.bench import cold_start_overlap, sandbox


@pytest.mark.docker
async def test_every_part_gives_figures_and_nothing_is_left(
    docker_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"_READY": 2, "_CLAIMS": 3, "_COLD": 1, "_EXECS": 5, "_SLOW_EXECS": 2, "_CROWD": 2}
    small |= {"_EACH": 3, "_TIMEOUTS": 1, "_FORKS": 2, "_DIFF": 1 << 20, "_SHARERS": 2}
    for name, value in (small | {"_IMAGE": 1 << 20}).items():
        monkeypatch.setattr(sandbox, name, value)
    monkeypatch.setattr(sandbox, "_ROUNDS", 1)
    monkeypatch.setattr(cold_start_overlap, "_PROGRAMS", 2)
    monkeypatch.setattr(cold_start_overlap, "_POOL", 2)
    bench = sandbox.Bench(docker_url)
    rows = {row.what: row async for row in bench.measure()}
    assert len(rows) >= 18
    some = [row for name, row in rows.items() if "leaves" not in name and "hidden" not in name]
    assert all(row.ours > 0 or row.unit == "%" for row in some)
    assert rows["wait hidden, one for each call"].ours <= 100
    assert rows["processes that a timeout leaves"].ours == 0
    assert rows["timeout of 0.3 s, overshoot at most"].ours < 10_000
    provider = bench.provider
    await bench.close()
    again = type(provider)(provider._owner, docker_url)
    assert (await again.owned(), await again.snapshots()) == ([], [])
    await again.close()
