"""Copies between the tiers keep their order, and one that fails harms no request."""

import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.config import ModelConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.kvcache.copies import Copies, runs
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.kvcache.kv_export import Fingerprint
from drawloom.engine.kvcache.kv_memory import HostTier, KVStore
from drawloom.engine.runners.mock_runner import NumberTokenizer, hashed
from drawloom.engine.runners.mock_tiers import TensorRunner
from drawloom.engine.sequence import FinishReason, SamplingParams
from tests.fakes.mock_engine import mock_info

SIZE = 4
Run = Any


@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20))
def test_merged_copies_do_what_the_copies_do_one_by_one(pairs: list[tuple[int, int]]) -> None:
    wanted: dict[int, int] = {}
    for source, target in pairs:
        wanted[target] = source
    found: dict[int, int] = {}
    for source, target, count in runs(pairs):
        for n in range(count):
            assert target + n not in found, "written twice: the order would matter"
            found[target + n] = source + n
    assert found == wanted


def _core(host: int = 40, blocks: int = 12, **options: Any) -> tuple[EngineCore, TensorRunner]:
    runner = TensorRunner(hashed(50), SIZE, blocks, host, **options)
    info = mock_info(blocks, SIZE, host)
    cache = KVCache(blocks, SIZE, host_blocks=host)
    marks = Fingerprint(
        1, 1, 1, vocab_size=1 << 30, model="", dtype="int64", block_size=SIZE, digest="mock"
    )
    core = EngineCore(info, cache, runner, NumberTokenizer(), max_tokens=64, fingerprint=marks)
    return core, runner


def _ask(name: str, conversation: str, tokens: range) -> GenerateRequest:
    return GenerateRequest(name, conversation, tuple(tokens), SamplingParams(max_tokens=2))


@pytest.mark.parametrize("early", [True, False])
def test_imported_kv_is_saved_after_it_is_written(run_core: Run, early: bool) -> None:
    source, _ = _core()
    source.submit(_ask("a", "chat", range(30)))
    run_core(source)
    core, _ = _core(early=early)
    core.handle(do.Import("chat", source.handle(do.Export("chat"))))
    core.handle(do.Lease("chat", 60.0, 1.0))
    run_core(core)
    core.handle(do.Sleep())  # what is on the device only is lost
    core.handle(do.WakeUp())
    core.submit(_ask("b", "chat", range(35)))
    run_core(core)
    assert core.stats().cache.hit_host_tokens == 30


def test_kv_that_cannot_be_written_is_not_matched(run_core: Run) -> None:
    source, _ = _core()
    source.submit(_ask("a", "chat", range(30)))
    run_core(source)
    core, runner = _core()

    def broken(blocks: Any, data: Any) -> None:
        raise RuntimeError("no")

    runner.write = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        core.handle(do.Import("chat", source.handle(do.Export("chat"))))
    core.submit(_ask("b", "chat", range(35)))
    run_core(core)
    assert core.stats().cache.hit_tokens == 0


def _demoted(run_core: Run, **options: Any) -> tuple[EngineCore, TensorRunner]:
    """A conversation that is only in host memory."""
    core, runner = _core(**options)
    core.submit(_ask("a", "chat", range(30)))
    run_core(core)
    core.handle(do.Sleep())
    core.handle(do.WakeUp())
    return core, runner


def test_blocks_of_a_failed_load_are_computed(run_core: Run) -> None:
    core, runner = _demoted(run_core)
    runner.copies.failing = 1
    core.submit(_ask("b", "chat", range(35)))
    assert len(run_core(core)["b"]) == 2
    assert core.cache.stats().host_blocks == 0, "nobody tries to load it again"


@pytest.mark.parametrize("place", ["transfer", "finished_copies"])
def test_a_copy_fault_fails_no_request(run_core: Run, place: str) -> None:
    core, runner = _demoted(run_core)
    real, calls = getattr(runner, place), list[int]()

    def once(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no")
        return real(*args)

    setattr(runner, place, once)
    core.submit(_ask("b", "chat", range(35)))
    assert len(run_core(core)["b"]) == 2


def _tier() -> HostTier:
    spec = ModelConfig(
        "llama",
        10,
        8,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=4,
        intermediate_size=8,
        max_position=64,
    )
    return HostTier(KVStore(spec, 6, 2, torch.device("cpu"), torch.float32), 4)


def _wait(tier: HostTier) -> tuple[list[int], list[int], list[Copies]]:
    for _ in range(1000):
        saved, loaded = tier.finished_copies(0.01)
        failed = tier.failed_copies()
        if saved or loaded or failed:
            return saved, loaded, failed
    raise AssertionError("nobody tells what became of a copy")


def test_a_copy_that_raises_is_reported_and_the_next_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tier = _tier()
    monkeypatch.setattr(tier, "_move", lambda *_: 1 / 0)
    first = Copies([], [(1, 2)], [(0, 3)])
    tier._copier.put(first)  # type: ignore[union-attr]
    assert _wait(tier) == ([], [], [first])
    monkeypatch.undo()
    tier.transfer(tier._store, Copies([], [(4, 1)], []))
    assert _wait(tier) == ([4], [], [])
    tier.close()


def test_a_dead_copy_thread_is_replaced() -> None:
    tier = _tier()
    copier: Any = tier._copier
    dead: threading.Thread = copier.thread
    copier._jobs.put(None)
    dead.join()
    lost = Copies([], [(1, 2)], [])
    tier.transfer(tier._store, lost)
    assert _wait(tier) == ([], [], [lost])
    tier.transfer(tier._store, Copies([], [(4, 1)], []))
    assert _wait(tier) == ([4], [], [])
    assert copier.thread is not dead
    tier.close()


@pytest.mark.parametrize("share", [4, 2, 1])
def test_a_spilled_conversation_gives_the_same_answer(
    llama: Any, run_core: Run, share: int
) -> None:
    """Host memory of 1/4 to 1 of the device's: spills take each other's places between two
    steps."""
    tokens = 256
    core = llama.engine(kv_tokens=tokens, host_tokens=tokens // share)
    prompts = {
        name: [3 + (7 * n + at * at) % 250 for at in range(230)]
        for n, name in enumerate(("mine", "stranger"))
    }
    said = {}
    for turn, name in enumerate(("mine", "stranger", "mine")):
        core.cache.spill = True
        params = SamplingParams(max_tokens=8, ignore_eos=True)
        core.submit(GenerateRequest(str(turn), name, tuple(prompts[name]), params))
        said[turn] = run_core(core)[str(turn)]
        llama.follows(prompts[name], said[turn])
    assert said[2] == said[0]
    assert core.stats().cache.hit_host_tokens > 0
    core.close()


def test_a_request_that_waits_for_a_copy_that_raises_is_answered(
    llama: Any, run_core: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = llama.engine(kv_tokens=512, host_tokens=1024)
    prompt = list(range(3, 203))
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    core.submit(GenerateRequest("a", "chat", tuple(prompt), params))
    run_core(core)
    core.handle(do.Sleep())
    core.handle(do.WakeUp())
    monkeypatch.setattr(core._runner.host, "_carry_out", lambda copies: 1 / 0)
    core._runner.host._copier._work = core._runner.host._carry_out
    core.submit(GenerateRequest("b", "chat", (*prompt, 9), params))
    said = run_core(core)["b"]
    llama.follows([*prompt, 9], said)
    assert len(said) == 4
    core.close()


def test_a_runner_that_cannot_report_copies_ends_the_engine(
    run_core: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, runner = _demoted(run_core)
    monkeypatch.setattr(runner, "finished_copies", lambda wait=0.0: 1 / 0)
    core.submit(_ask("b", "chat", range(35)))
    with pytest.raises(Exception, match="state of copies"):
        for _ in range(50):
            core.step()
    assert FinishReason.ERROR not in {d.finish for d in core._deltas}
