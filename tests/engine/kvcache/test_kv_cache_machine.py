"""Block accounting, leases and chains hold under any order of events."""

import random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.kvcache.kv_export import Fingerprint
from drawloom.engine.runners.mock_runner import NumberTokenizer, hashed
from drawloom.engine.runners.mock_tiers import TensorRunner
from drawloom.engine.sequence import FinishReason, SamplingParams, Sequence
from drawloom.errors import EngineError
from tests.fakes.mock_engine import mock_info
from tests.lanes import examples

SIZE = 4
SALT = b"tenant"


class CacheMachine(RuleBasedStateMachine):
    """An engine core over a small cache in two tiers, tensors moved by the copies of a machine, and
    a runner that checks every block it reads; conversations that return, fork, lease, move between
    the tiers and end in any order; copies that fail."""

    window = 0

    def __init__(self) -> None:
        super().__init__()
        self.chats: dict[str, list[int]] = {}
        self.now = 0.0
        self.made = 0

    @initialize(
        host=st.sampled_from([0, 5, 9, 18, 36, 72]),
        delay=st.integers(0, 3),
        save_leased=st.booleans(),
        spill=st.booleans(),
        async_launch=st.booleans(),
        paged=st.booleans(),
        early=st.booleans(),
    )
    def begin(
        self,
        host: int,
        delay: int,
        save_leased: bool,
        spill: bool,
        async_launch: bool,
        paged: bool,
        early: bool,
    ) -> None:
        self.cache = KVCache(
            18,
            SIZE,
            lease_budget=0.5,
            host_blocks=host,
            save_leased=save_leased,
            window=self.window,
        )
        self.cache.spill = spill
        self.runner = TensorRunner(
            hashed(3),
            SIZE,
            18,
            host,
            window=self.window,
            delay=delay,
            async_launch=async_launch,
            paged=paged,
            early=early,
        )
        info = mock_info(18, SIZE, host, context=200 if self.window else None)
        self.core = EngineCore(
            info,
            self.cache,
            self.runner,
            NumberTokenizer(),
            max_tokens=11,
            max_sequences=4,
            fingerprint=Fingerprint(
                1, 1, 1, vocab_size=1 << 30, model="", dtype="int64", block_size=SIZE, digest="mock"
            ),
            clock=lambda: self.now,
        )

        for turn in range(6):
            self.ask(turn % 3 == 0, 13 + 5 * turn, 1 + turn % 3, turn, 0, turn)
            self.step(3 * turn)

    @rule(
        new=st.booleans(),
        more=st.integers(1, 30),
        words=st.integers(1, 3),
        count=st.integers(0, 6),
        priority=st.integers(0, 2),
        which=st.integers(0, 50),
    )
    def ask(self, new: bool, more: int, words: int, count: int, priority: int, which: int) -> None:
        if (new and len(self.chats) < 8) or not self.chats:
            self.made += 1
            self.chats[f"chat-{self.made}"] = []
        name = sorted(self.chats)[which % len(self.chats)]
        if any(s.conversation == name for s in self.core.batch.sequences):
            return
        rng = random.Random(more * 7 + words)
        tokens = self.chats[name] + [rng.randrange(words) for _ in range(more)]
        if len(tokens) > 55:
            tokens = tokens[:30]
        self.made += 1
        params = SamplingParams(
            max_tokens=count,
            score_from=more if count % 3 == 2 else -1,
            stop_ids=(0,) if more % 4 == 1 else (),
            presence_penalty=0.5 if more % 7 == 3 else 0.0,
        )
        request = GenerateRequest(f"seq-{self.made}", name, tuple(tokens), params, priority)
        self.core.submit(request)

    @rule(
        which=st.lists(st.integers(0, 7), min_size=2, max_size=6, unique=True),
        more=st.integers(1, 12),
        count=st.integers(1, 12),
        times=st.integers(0, 40),
    )
    def ask_many(self, which: list[int], more: int, count: int, times: int) -> None:
        for index in which:
            self.ask(False, more + index, 3, count, index % 3, index)
        self.step(times)

    @rule(times=st.integers(1, 40))
    def step(self, times: int) -> None:
        for _ in range(times):
            running = {
                name: one.seq for name, one in self.core.requests.open.items()
            }  # ended ones too
            for delta in self.core.step():
                assert delta.error is None, delta.error
                if delta.finish in (FinishReason.STOP, FinishReason.LENGTH):
                    seq = running.get(delta.request)
                    if seq is not None and seq.conversation in self.chats:
                        self.chats[seq.conversation] = seq.tokens

    @rule()
    def step_that_fails(self) -> None:
        if len(self.core._launched) >= self.core._depth:
            return
        plan = self.core.batch.schedule()
        self.core.transfers.start()
        if plan is not None:
            if self.core._runner.async_launch:
                self.core.batch.mark_launched(plan)
            for output in self.core.batch.fail_step(plan, RuntimeError("no")):
                del self.core.requests.open[output.seq.id]

    @rule(count=st.integers(1, 3))
    def copies_that_fail(self, count: int) -> None:
        if self.runner.tier is not None:
            self.runner.copies.failing = count

    @rule(data=st.data())
    def move_elsewhere_and_back(self, data: Any) -> None:
        if not self.chats or self.window:
            return
        name = data.draw(st.sampled_from(sorted(self.chats)))
        try:
            exported = self.core.handle(do.Export(name))
        except EngineError:
            return
        self.made += 1
        self.core.handle(do.Release(name))
        self.core.handle(do.Import(name, exported, b"" if self.made % 2 else SALT))

    @rule(data=st.data(), ttl=st.floats(0, 5), value=st.floats(0, 3))
    def lease(self, data: Any, ttl: float, value: float) -> None:
        if self.chats:
            name = data.draw(st.sampled_from(sorted(self.chats)))
            self.core.handle(do.Lease(name, ttl, value))

    @rule(data=st.data(), kind=st.sampled_from([do.Demote, do.Prefetch]))
    def verb(self, data: Any, kind: Any) -> None:
        if self.chats:
            name = data.draw(st.sampled_from(sorted(self.chats)))
            reply = self.core.handle(kind(name))
            assert 0 <= reply.tokens <= 200

    @rule(data=st.data(), chance=st.integers(0, 2))
    def release(self, data: Any, chance: int) -> None:
        if self.chats and chance == 1:
            name = data.draw(st.sampled_from(sorted(self.chats)))
            self.core.handle(do.Release(name))
            del self.chats[name]

    @rule(data=st.data())
    def fork(self, data: Any) -> None:
        if self.chats:
            name = data.draw(st.sampled_from(sorted(self.chats)))
            if len(self.chats) > 7:
                return
            self.made += 1
            self.core.handle(do.Fork(name, f"chat-{self.made}"))
            self.chats[f"chat-{self.made}"] = list(self.chats[name])

    @rule()
    def sweep(self) -> None:
        self.cache._conversations._prune()

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if len(self.core.batch):
            name = data.draw(st.sampled_from([s.id for s in self.core.batch.sequences]))
            self.core.handle(do.Cancel(name))

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(chance=st.integers(0, 9))
    def new_weights(self, chance: int) -> None:
        if chance == 7 and not self.made % 3:
            self.made += 1
            self.core.handle(do.UpdateWeights(f"v{self.made}", tensors={}))

    @rule(chance=st.integers(0, 4))
    def sleep_and_wake(self, chance: int) -> None:
        if chance == 3:
            self.core.handle(do.Sleep())
            assert self.cache.stats().held_blocks == 0 and not self.cache.stats().leased_blocks
            self.core.handle(do.WakeUp())

    @invariant()
    def accounting_is_exact(self) -> None:
        if hasattr(self, "cache"):
            weights = [b"", *(f"v{n}".encode() + b"\0" for n in range(self.made + 1))]
            salts = [version + salt for version in weights for salt in (b"", SALT)]
            self.cache.check(self.core.batch.sequences, salts)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(10_000):
            if not self.core.busy:
                break
            self.core.step()
        assert not len(self.core.batch), "a sequence never finished"
        self.cache.remove_all()
        self.cache.check([])
        assert self.cache.stats().free_blocks == self.cache.total_blocks
        assert self.cache.stats().host_blocks == 0


class WindowMachine(CacheMachine):
    """The same behind a sliding window."""

    window = 7


for machine in (CacheMachine, WindowMachine):
    machine.TestCase.settings = settings(
        max_examples=examples(250), stateful_step_count=40, deadline=None
    )
TestCache = CacheMachine.TestCase
TestWindow = WindowMachine.TestCase


def test_blocks_imported_with_a_salt_under_new_weights_belong_to_both() -> None:
    machine = CacheMachine()
    machine.begin(
        host=0,
        delay=0,
        save_leased=False,
        spill=False,
        async_launch=False,
        paged=False,
        early=False,
    )
    core, tokens = machine.core, (0, 1, 2, 2, 1, 0, 2, 0, 1)
    core.handle(do.UpdateWeights("v1", tensors={}))
    core.submit(GenerateRequest("request", "mine", tokens, SamplingParams(max_tokens=0)))
    machine.step(3)
    exported = core.handle(do.Export("mine"))
    core.handle(do.Release("mine"))
    assert core.handle(do.Import("mine", exported, SALT)).tokens == 9
    machine.accounting_is_exact()
    for salt, hit in ((b"v1\0" + SALT, 9), (b"v1\0", 0), (SALT, 0), (b"", 0)):
        probe = Sequence("probe", "probe", [*tokens, 0], SamplingParams(), salt=salt)
        assert machine.cache.match(probe).tokens == hit
