"""An exception at any call of a step ends one request; all other answers stay the same."""

from collections.abc import Callable
from typing import Any

import pytest

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import Delta, GenerateRequest, Grammar
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.runners.mock_runner import NumberTokenizer, hashed
from drawloom.engine.runners.mock_tiers import TensorRunner
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.engine.text.tokenizer import TextStream
from drawloom.errors import EngineError
from tests.fakes.mock_engine import mock_info

SIZE = 4


class AnyGuide:
    """A grammar that lets a sequence say anything."""

    complete = False

    def mask(self) -> bytes:
        return b"\xff" * 200

    def accept(self, token: int) -> None: ...


class Guides:
    def guide(self, kind: str, text: str, after: str) -> AnyGuide:
        return AnyGuide()


def _core(async_launch: bool) -> EngineCore:
    runner = TensorRunner(hashed(50), SIZE, 30, 60, async_launch=async_launch, delay=1)
    info = mock_info(30, SIZE, host=60)
    cache = KVCache(30, SIZE, host_blocks=60)
    return EngineCore(
        info, cache, runner, NumberTokenizer(), max_tokens=20, max_sequences=4, grammars=Guides()
    )


# every call that a step makes: (its owner in a core, its name)
CALLS: list[tuple[Callable[[EngineCore], Any], str]] = [
    (lambda c: c._runner, "launch"),
    (lambda c: c._runner, "run"),
    (lambda c: c._runner, "transfer"),
    (lambda c: c._runner, "finished_copies"),
    (lambda c: c._runner, "failed_copies"),
    (lambda c: c.batch, "schedule"),
    (lambda c: c.batch, "mark_launched"),
    (lambda c: c.batch, "complete"),
    (lambda c: c.batch, "ends"),
    (lambda c: c.batch, "_admit"),
    (lambda c: c.batch, "_add_token"),
    (lambda c: c.batch, "_finish_reason"),
    (lambda c: c.cache, "allocate"),
    (lambda c: c.cache, "append"),
    (lambda c: c.cache, "match"),
    (lambda c: c.cache, "producer"),
    (lambda c: c.cache, "publish"),
    (lambda c: c.cache, "free"),
    (lambda c: c.cache, "take_copies"),
    (lambda c: c.cache, "finish_save"),
    (lambda c: c.cache, "finish_load"),
    (lambda c: c.cache._conversations, "expire"),
    (lambda c: c.cache._conversations, "record"),
    (lambda c: c, "_measure"),
    (lambda c: c.requests, "_advance"),
    (lambda c: c.requests, "_delta"),
    (lambda c: NumberTokenizer, "text.push"),
    (lambda c: NumberTokenizer, "text.flush"),
    (lambda c: AnyGuide, "accept"),
]


def _submit(core: EngineCore) -> None:
    for n in range(7):
        grammar = Grammar("regex", ".*") if n % 3 == 1 else None
        params = SamplingParams(max_tokens=6 + n, logprobs=n % 2 == 0)
        tokens = (1, 2, 3, 4, 5, 6, *range(10 * n, 10 * n + 3 * n + 1))
        core.submit(GenerateRequest(f"r{n}", f"chat-{n % 5}", tokens, params, grammar=grammar))


def _run(core: EngineCore) -> dict[str, list[Delta]]:
    heard: dict[str, list[Delta]] = {}
    for _ in range(2000):
        if not core.busy:
            break
        for delta in core.step():
            heard.setdefault(delta.request, []).append(delta)
    assert not core.busy, "somebody waits for ever"
    return heard


def _serve(core: EngineCore) -> dict[str, list[Delta]]:
    """Two rounds of requests, what the first left behind being in host memory only."""
    _submit(core)
    first = _run(core)
    for n in range(5):
        core.handle(do.Lease(f"chat-{n}", 60.0, 1.0))
    first |= _run(core)
    core.handle(do.Sleep())
    core.handle(do.WakeUp())
    _submit(core)
    return {f"1-{k}": v for k, v in first.items()} | {f"2-{k}": v for k, v in _run(core).items()}


def _answer(deltas: list[Delta]) -> tuple[list[int], str, FinishReason | None]:
    tokens = [token for delta in deltas for token in delta.tokens]
    return tokens, "".join(delta.text for delta in deltas), deltas[-1].finish


class Breaking:
    """Raises at one call, and passes all others on."""

    def __init__(self, real: Any, at: int, error: type[BaseException] = RuntimeError) -> None:
        self.real, self.at, self.calls, self.error = real, at, 0, error

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise self.error("injected")
        return self.real(*args, **options)


def _inject(
    monkeypatch: pytest.MonkeyPatch, core: EngineCore, owner: Any, name: str, at: int
) -> Breaking:
    if name.startswith("text."):
        owner, name = TextStream, name.removeprefix("text.")
    breaking = Breaking(getattr(owner, name), at)
    method: Any = breaking
    if isinstance(owner, type):
        method = lambda self, *args: breaking(self, *args)  # noqa: E731
    monkeypatch.setattr(owner, name, method)
    return breaking


@pytest.mark.parametrize("async_launch", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(("owner", "name"), CALLS, ids=[name for _, name in CALLS])
def test_one_exception_ends_one_request_at_most(
    monkeypatch: pytest.MonkeyPatch,
    owner: Callable[[EngineCore], Any],
    name: str,
    async_launch: bool,
) -> None:
    wanted = {k: _answer(v) for k, v in _serve(_core(async_launch)).items()}
    for at in (1, 2, 5, 12):
        core = _core(async_launch)
        with monkeypatch.context() as patch:
            breaking = _inject(patch, core, owner(core), name, at)
            heard = _serve(core)
        if breaking.calls < at:  # a step makes fewer of these calls
            assert at > 1 or (name, async_launch) == ("mark_launched", False), (
                f"{name} is never called"
            )
            break
        found = {k: _answer(v) for k, v in heard.items()}
        assert found.keys() == wanted.keys()
        failed = [k for k, v in found.items() if v[2] is FinishReason.ERROR]
        assert len(failed) <= 1
        assert all(isinstance(heard[k][-1].error, EngineError) for k in failed)
        for request, answer in found.items():
            tokens = answer[0]
            if request in failed:
                assert tokens == wanted[request][0][: len(tokens)]
            else:
                assert answer == wanted[request], request
        _is_sound(core)


def _is_sound(core: EngineCore) -> None:
    """Nothing is left behind of a fault: all blocks are there, and the next request is served."""
    assert not len(core.batch) and not core.requests.open
    assert sorted(core.batch._slots) == list(range(4))
    core.cache.check([])
    core.submit(GenerateRequest("after", "after", (7, 8, 9), SamplingParams(max_tokens=3)))
    assert len(_answer(_run(core)["after"])[0]) == 3


@pytest.mark.parametrize("name", ["publish", "allocate", "_add_token", "_advance"])
def test_a_request_over_which_a_call_always_fails_ends_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wanted = {k: _answer(v) for k, v in _serve(_core(False)).items()}
    core = _core(False)
    owner: Any = next(o for o, n in CALLS if n == name)(core)
    real = getattr(owner, name)

    def broken(*args: Any) -> Any:
        if any(
            "r3" in (getattr(a, "id", ""), getattr(getattr(a, "seq", None), "id", "")) for a in args
        ):
            raise RuntimeError("injected")
        return real(*args)

    monkeypatch.setattr(owner, name, broken)
    found = {k: _answer(v) for k, v in _serve(core).items()}
    assert {k for k, v in found.items() if v[2] is FinishReason.ERROR} == {"1-r3", "2-r3"}
    assert all(found[k] == wanted[k] for k in wanted if not k.endswith("r3"))


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("name", ["run", "text.push", "accept"])
def test_a_panic_of_a_library_ends_one_request(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    wanted = {k: _answer(v) for k, v in _serve(_core(False)).items()}
    core = _core(False)
    owner = next(o for o, n in CALLS if n == name)(core)
    with monkeypatch.context() as patch:
        _inject(patch, core, owner, name, 5).error = Panic
        found = {k: _answer(v) for k, v in _serve(core).items()}
    failed = [k for k, v in found.items() if v[2] is FinishReason.ERROR]
    assert len(failed) == (name != "run")
    assert all(found[k] == wanted[k] for k in wanted if k not in failed)
    _is_sound(core)


def test_a_step_that_can_never_be_planned_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    core = _core(False)
    monkeypatch.setattr(core.batch, "schedule", lambda: 1 / 0)
    _submit(core)
    with pytest.raises(EngineError, match="planning a step"):
        for _ in range(100):
            core.step()
