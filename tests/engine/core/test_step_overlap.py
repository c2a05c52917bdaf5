"""Launching a step before the last one completes changes no answer."""

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import Delta, GenerateRequest
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.core.step_plan import Sampled, StepPlan
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.runners.mock_runner import MockRunner, NumberTokenizer, hashed
from drawloom.engine.sequence import FinishReason, SamplingParams
from tests.fakes.mock_engine import mock_info
from tests.lanes import examples

SIZE = 4


class Watched(MockRunner):
    """Notes when a step is launched and when its result is asked for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[tuple[str, int]] = []
        self.steps = 0
        self.fail: Callable[[StepPlan], bool] = lambda plan: False

    def launch(self, plan: StepPlan) -> Callable[[], dict[str, Sampled]]:
        number, broken = self.steps, self.fail(plan)
        result = dict if broken else super().launch(plan)  # what fails has computed nothing
        self.steps += 1
        self.seen.append(("launched", number))

        def wait() -> dict[str, Sampled]:
            self.seen.append(("known", number))
            if broken:
                raise RuntimeError("broken")
            return result()

        return wait


def _core(
    async_launch: bool = True, blocks: int = 40, words: int = 50
) -> tuple[EngineCore, Watched]:
    runner = Watched(hashed(words), SIZE, async_launch=async_launch)
    info = mock_info(blocks, SIZE)
    core = EngineCore(
        info, KVCache(blocks, SIZE), runner, NumberTokenizer(), max_tokens=16, max_sequences=4
    )
    return core, runner


def _ask(name: str, tokens: list[int], **options: Any) -> GenerateRequest:
    return GenerateRequest(name, name, tuple(tokens), SamplingParams(**options))


def _run(core: EngineCore) -> dict[str, tuple[list[int], FinishReason | None]]:
    said: dict[str, list[int]] = {}
    ended: dict[str, FinishReason | None] = {}
    while core.busy:
        for delta in core.step():
            said.setdefault(delta.request, []).extend(delta.tokens)
            ended[delta.request] = delta.finish or ended.get(delta.request)
    core.cache.check([])
    assert core.cache.stats().held_blocks == 0
    return {name: (tokens, ended[name]) for name, tokens in said.items()}


def test_the_next_step_is_launched_before_the_last_is_known() -> None:
    core, runner = _core()
    core.submit(_ask("a", [1, 2, 3], max_tokens=4))
    _run(core)
    assert runner.seen == [
        ("launched", 0),
        ("launched", 1),
        ("known", 0),
        ("launched", 2),
        ("known", 1),
        ("launched", 3),
        ("known", 2),
        ("known", 3),
    ]


def test_a_sequence_that_needs_every_token_is_not_launched_early() -> None:
    core, runner = _core()
    core.submit(_ask("a", [1, 2, 3], max_tokens=2, presence_penalty=1.0))
    _run(core)
    assert [what for what, _ in runner.seen] == ["launched", "known"] * 2


def test_a_step_of_a_sequence_that_ended_is_ignored() -> None:
    core, runner = _core(words=3)
    plain, _ = _core(async_launch=False, words=3)
    for engine in (core, plain):
        engine.submit(_ask("a", [1, 2, 0], max_tokens=30, stop_ids=(1,)))
    assert _run(core) == _run(plain)
    assert runner.steps == core.batch.counters.generated_tokens + 1
    assert core.stats().batch.generated_tokens == plain.stats().batch.generated_tokens


def test_a_step_that_fails_ends_only_the_sequence_that_fails_alone() -> None:
    core, runner = _core()
    plain, _ = _core(async_launch=False)
    runner.fail = lambda plan: any(c.seq.id == "bad" and c.end > 5 for c in plan.chunks)
    for engine in (core, plain):
        for name in ("good", "bad", "fine"):
            engine.submit(_ask(name, [1, 2, len(name)], max_tokens=9))
    found, wanted = _run(core), _run(plain)
    assert found["bad"][1] is FinishReason.ERROR
    assert found["good"] == wanted["good"] and found["fine"] == wanted["fine"]


def test_blocks_of_a_step_in_flight_are_not_matched() -> None:
    core, runner = _core()
    runner.fail = lambda plan: plan.chunks[0].seq.id == "gone"
    core.submit(_ask("gone", list(range(12)), max_tokens=3))
    core.prepare()
    core.cancel("gone")
    core.submit(_ask("same", list(range(12)), max_tokens=3))
    tokens, finish = _run(core)["same"]
    assert finish is FinishReason.LENGTH and len(tokens) == 3
    assert core.stats().cache.hit_tokens == 0


def test_weights_change_and_the_engine_sleeps_only_when_no_step_is_in_flight() -> None:
    core, runner = _core()
    core.submit(_ask("a", [1, 2, 3], max_tokens=12))
    plain, _ = _core(async_launch=False)
    plain.submit(_ask("a", [1, 2, 3], max_tokens=12))
    deltas: list[Delta] = []
    for _ in range(4):
        deltas += core.step()
    core.handle(do.UpdateWeights("v1", tensors={}))
    assert runner.seen[-1][0] == "known" and not core._launched
    deltas += core.step()
    core.handle(do.Sleep())
    assert not core._launched
    core.handle(do.WakeUp())
    while core.busy:
        deltas += core.step()
    assert [t for d in deltas for t in d.tokens] == _run(plain)["a"][0]


def test_no_sequence_is_preempted_while_a_step_is_in_flight() -> None:
    """At the end of its last block, with nobody to take one from: what it says there is kept."""
    core, runner = _core(blocks=6)
    core.submit(_ask("first", list(range(11)), max_tokens=9))
    core.submit(_ask("second", list(range(20, 31)), max_tokens=9))
    steps, heard = 0, list[Delta]()
    while core.busy:
        steps += 1
        assert steps < 60, "no progress"
        heard += core.step()
    assert core.batch.counters.preemptions == 1
    second = [delta for delta in heard if delta.request == "second"]
    (gave_way,) = (at for at, delta in enumerate(second) if delta.preempted)
    assert [len(delta.tokens) for delta in second] == [1] * gave_way + [0] + [1] * (9 - gave_way)
    assert 0 < gave_way < 9
    assert not any(delta.preempted for delta in heard if delta.request == "first")
    assert core.batch.counters.generated_tokens == 18
    assert runner.steps < 40


@settings(max_examples=examples(150), deadline=None)
@given(
    asks=st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 12), st.booleans(), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    blocks=st.integers(12, 40),
    words=st.integers(2, 6),
    gap=st.integers(0, 3),
)
def test_answers_are_the_same_with_and_without_async_launch(
    asks: list[tuple[int, int, bool, bool]], blocks: int, words: int, gap: int
) -> None:
    """Requests that come one by one, into too little memory; some end early, some are penalised."""
    results = []
    for async_launch in (True, False):
        core, _ = _core(async_launch, blocks, words)
        said: dict[str, list[int]] = {}
        ends: dict[str, FinishReason] = {}

        def step(core: EngineCore = core, said: Any = said, ends: Any = ends) -> None:
            for delta in core.step():
                assert delta.error is None
                said.setdefault(delta.request, []).extend(delta.tokens)
                if delta.finish is not None:
                    ends[delta.request] = delta.finish

        for number, (length, count, stops, close) in enumerate(asks):
            name, tokens = f"r{number}", [number % 3, *([1] * length)]
            options = {"stop_ids": (0,) if stops else (), "presence_penalty": 0.1 * close}
            core.submit(_ask(name, tokens, max_tokens=count, **options))
            for _ in range(gap):
                step()
        while core.busy:
            step()
        core.cache.check([])
        assert core.cache.stats().held_blocks == 0
        assert len(core.batch._slots) == 4
        results.append((said, ends))
    assert results[0] == results[1]
