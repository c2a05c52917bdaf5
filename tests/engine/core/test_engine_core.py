"""Engine core, stepped by hand: weights, sleep, leases, extensions, and a full memory."""

from typing import Any

import pytest

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.runners.mock_runner import MockRunner, NumberTokenizer, hashed
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.errors import ConfigError, EngineError
from drawloom.leases import LeaseStatus
from tests.fakes.mock_engine import mock_info

SIZE = 16


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _core(
    blocks: int = 64, host: int = 0, delay: int = 0, clock: Clock | None = None, **options: Any
) -> EngineCore:
    runner = MockRunner(hashed(1000), SIZE, delay=delay)
    info = mock_info(blocks, SIZE, host)
    cache = KVCache(blocks, SIZE, host_blocks=host)
    return EngineCore(info, cache, runner, NumberTokenizer(), clock=clock or Clock(), **options)


def _ask(name: str, count: int, conversation: str = "", **options: Any) -> GenerateRequest:
    params = SamplingParams(**{"max_tokens": 5, **options})
    offset = 1000 * (sum(map(ord, conversation or name)) % 97)
    tokens = tuple(range(offset, offset + count))
    return GenerateRequest(name, conversation or name, tokens, params)


def _run(core: EngineCore) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    while core.busy:
        for delta in core.step():
            out.setdefault(delta.request, []).extend(delta.tokens)
    return out


def test_a_token_is_delivered_before_the_next_is_computed() -> None:
    core = _core()
    core.submit(_ask("a", 4))
    assert core.prepare() == []
    core.compute()
    told = core.prepare()
    assert [len(d.tokens) for d in told] == [1]
    assert core.batch.counters.generated_tokens == 1


def test_new_weights_drop_no_request_and_use_no_old_block() -> None:
    core = _core()
    core.submit(_ask("old", 100))
    _run(core)
    core.submit(_ask("running", 60, max_tokens=20))
    for _ in range(5):
        core.step()
    core.handle(do.UpdateWeights("v2", tensors={}))
    assert len(_run(core)["running"]) + 4 >= 20
    core.submit(_ask("again", 100, "old"))
    _run(core)
    assert core.stats().cache.hit_tokens == 0
    assert core.stats().weights == "v2"
    with pytest.raises(ConfigError, match="v2"):
        core.handle(do.UpdateWeights("v2", tensors={}))
    with pytest.raises(ConfigError, match="folder"):
        core.handle(do.UpdateWeights("v3"))


@pytest.mark.parametrize("host", [0, 64])
def test_sleep_frees_the_device_and_drops_no_request(host: int) -> None:
    core = _core(host=host)
    core.submit(_ask("idle", 100, "chat"))
    _run(core)
    core.submit(_ask("running", 60, max_tokens=20))
    for _ in range(5):
        core.step()
    core.handle(do.Sleep())
    core.submit(_ask("asked-while-asleep", 10))
    assert core.stats().cache.held_blocks == 0
    assert not core.busy or core.step() is not None
    core.handle(do.WakeUp())
    out = _run(core)
    assert len(out["asked-while-asleep"]) == 5
    core.submit(_ask("back", 110, "chat"))
    _run(core)
    assert core.stats().cache.hit_host_tokens >= (100 if host else 0)


def test_a_newer_extension_supersedes_the_one_that_runs() -> None:
    core = _core(max_tokens=16)
    core.submit(_ask("first", 200, "chat", max_tokens=0))
    core.step()
    core.submit(_ask("second", 300, "chat", max_tokens=0))
    ends: dict[str, FinishReason] = {}
    while core.busy:
        ends |= {d.request: d.finish for d in core.step() if d.finish}
    assert ends == {"first": FinishReason.CANCELLED, "second": FinishReason.LENGTH}
    assert core.stats().cache.hit_tokens >= 16


def test_a_leased_conversation_is_demoted_and_prefetched() -> None:
    core = _core(host=64)
    core.submit(_ask("a", 100, "chat"))
    _run(core)
    assert core.handle(do.Lease("chat", 60.0, 1.0)).status is LeaseStatus.ACCEPTED
    assert core.stats().cache.leased_blocks == 7
    assert core.handle(do.Demote("chat")).status is LeaseStatus.ACCEPTED
    _run(core)
    assert core.stats().cache.leased_blocks == 0
    assert core.stats().cache.demotions == 1
    assert core.handle(do.Prefetch("chat")).tokens == 104
    assert core.handle(do.Release("chat")).status is LeaseStatus.ACCEPTED
    assert core.stats().cache.conversations == 0
    assert core.stats().cache.host_blocks == 0


def test_a_broken_lease_whose_conversation_returns_counts_as_regret() -> None:
    clock = Clock()
    core = _core(blocks=12, clock=clock)
    core.submit(_ask("a", 100, "chat"))
    _run(core)
    core.handle(do.Lease("chat", 10.0, 1.0))
    core.submit(_ask("b", 180))
    _run(core)
    assert core.stats().cache.lease_breaks == 1
    clock.now = 5.0
    core.submit(_ask("c", 120, "chat"))
    _run(core)
    assert core.stats().cache.lease_regrets == 1
    assert core.stats().cache.regret_tokens > 50


def test_a_replaced_lease_outlives_its_first_end() -> None:
    clock = Clock()
    core = _core(clock=clock)
    core.submit(_ask("a", 100, "chat"))
    _run(core)
    core.handle(do.Lease("chat", 1.0, 1.0))
    core.handle(do.Lease("chat", 5.0, 1.0))
    clock.now = 3.0
    core.step()
    assert core.stats().cache.leased_blocks == 7
    clock.now = 6.0
    core.step()
    assert core.stats().cache.leased_blocks == 0


def test_a_parked_sequence_delays_no_other() -> None:
    core = _core(host=64, delay=50)
    core.submit(_ask("a", 200, "chat"))
    _run(core)
    core.handle(do.Sleep())
    core.handle(do.WakeUp())
    core.submit(_ask("back", 210, "chat"))
    core.submit(_ask("other", 20, max_tokens=30))
    core.step()
    assert core.stats().batch.parked == 1
    finished: list[str] = []
    while core.busy:
        finished += [d.request for d in core.step() if d.finish]
    assert finished == ["other", "back"]
    assert core.stats().cache.recomputed_tokens == 0


def test_ten_times_more_programs_than_memory_at_99_percent_all_finish() -> None:
    """Programs that lease all they can between their turns: nobody waits for a lease."""
    clock = Clock()
    core = _core(blocks=100, host=150, delay=1, clock=clock, max_sequences=32)
    turns = {f"p{i}": 0 for i in range(100)}
    for name in turns:
        core.submit(_ask(f"{name}-0", 150, name, max_tokens=12))
    fullest = 0.0
    for _ in range(20_000):
        clock.now += 0.01
        for delta in core.step():
            if delta.finish is None:
                continue
            name = delta.request.split("-")[0]
            turns[name] += 1
            if turns[name] == 4:
                core.handle(do.Release(name))
            else:
                core.handle(do.Lease(name, 1e6, 1.0))
                length = 150 + 20 * turns[name]
                core.submit(_ask(f"{name}-{turns[name]}", length, name, max_tokens=12))
        fullest = max(fullest, 1 - core.cache.stats().free_blocks / 100)
        if not core.busy:
            break
    assert set(turns.values()) == {4}
    assert fullest > 0.99
    core.cache.check([])
    assert core.stats().cache.conversations == 0


def test_a_conversation_that_is_released_while_it_runs_leaves_nothing() -> None:
    core = _core()
    core.submit(_ask("a", 40, "chat", max_tokens=10))
    core.step()
    core.handle(do.Release("chat"))
    assert len(_run(core)["a"]) == 10
    assert core.stats().cache.conversations == 0
    assert core.cache.available == 64


def test_kv_of_another_model_is_refused() -> None:
    core = _core()
    with pytest.raises(EngineError, match="elsewhere"):
        core.handle(do.Import("chat", b"nothing"))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (GenerateRequest("a", "a", (1, -5)), "vocabulary"),
        (GenerateRequest("a", "a", (1,), SamplingParams(logit_bias=((-3, 1.0),))), "logit_bias"),
        (GenerateRequest("a", "a", (1, 2), resumed_tokens=2), "resumed_tokens=2"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(request_: GenerateRequest, words: str) -> None:
    core = _core()
    with pytest.raises(EngineError, match=words):
        core.submit(request_)
    assert not core.busy
