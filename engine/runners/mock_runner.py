"""Runner without a model, for tests and benchmarks of the core and for the simulator.

It remembers the token written to every slot of every block, in both tiers, and checks that each
step finds the KV of exactly the tokens that it attends to. A block allocated twice, a late copy or
a chain with a gap, which would give garbage with a model, raises `AssertionError`.
"""

from collections import deque
from collections.abc import Callable, Iterable
from copy import copy
from hashlib import blake2b

from drawloom.engine.core.step_plan import Chunk, Sampled, StepPlan
from drawloom.engine.kvcache.copies import Copies, runs
from drawloom.engine.sequence import UNSAMPLED, Sequence
from drawloom.engine.text.tokenizer import TextStream, Tokenizer
from drawloom.prompts import Prompt

Script = Callable[[Sequence], int]


def hashed(vocabulary: int) -> Script:
    """Return a script whose tokens depend on all tokens before them, as a model's do."""

    def next_token(seq: Sequence) -> int:
        text = repr(seq.tokens).encode()
        return int.from_bytes(blake2b(text, digest_size=4).digest(), "little") % vocabulary

    return next_token


class NumberTokenizer(Tokenizer):
    """Write tokens as decimal numbers, each with a space behind it."""

    def __init__(self, size: int = 1 << 30) -> None:
        self.size = size

    def encode(self, text: str | Prompt) -> list[int]:
        return [int(word) for word in Prompt.of(text).text.split()]

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        return "".join(f"{token} " for token in ids)

    def stream(
        self, stop: tuple[str, ...] = (), *, special: bool = False, after: Iterable[int] = ()
    ) -> TextStream:
        return TextStream(self.decode, str, stop)


class MockRunner:
    """Sample what `script` returns, and check each block that a step reads.

    Args:
        script: returns the next token of a sequence.
        block_size: tokens of a KV block.
        window: tokens that a token attends to, itself included; 0 is all.
        delay: calls of `finished_copies` until a copy is complete.
        async_launch: compute a step at its launch, before its predecessor's result is read.
    """

    def __init__(
        self,
        script: Script,
        block_size: int,
        *,
        window: int = 0,
        delay: int = 0,
        async_launch: bool = False,
    ) -> None:
        self.async_launch, self._sampled = async_launch, dict[str, int]()
        self._script, self._size, self._window = script, block_size, window
        self._delay = delay
        self._device: dict[int, int] = {}
        self._host: dict[int, dict[int, int]] = {}
        self._waiting: deque[tuple[int, Copies]] = deque()
        self._asked = 0
        self.asleep = False

    def launch(self, plan: StepPlan) -> Callable[[], dict[str, Sampled]]:
        if not self.async_launch:
            return lambda: self.run(plan)
        out = self.run(plan)
        return lambda: out

    def run(self, plan: StepPlan) -> dict[str, Sampled]:
        assert not self.asleep
        size, device, out = self._size, self._device, {}
        for source, target, count in plan.copies:
            for at in range(count):
                device[target * size + at] = device[source * size + at]
        for chunk in plan.chunks:
            for place, token in enumerate(self._fed(chunk), chunk.start):
                device[chunk.blocks[place // size] * size + place % size] = token
        for chunk in plan.chunks:
            seq = self._without_pending(chunk)
            first = max(0, chunk.start - self._window + 1) if self._window else 0
            for place in range(first, chunk.end):
                slot = chunk.blocks[place // size] * size + place % size
                assert device.get(slot) == seq.tokens[place], (
                    f"{seq.id}: block {chunk.blocks[place // size]} does not hold token {place}"
                )
            if chunk.sample or chunk.score >= 0:
                scores = [-1.0] * len(chunk.scored)
                out[seq.id] = Sampled(self._script(seq), scores=scores)
                self._sampled[seq.id] = out[seq.id].token
        return out

    def _fed(self, chunk: Chunk) -> list[int]:
        """Return the tokens of a chunk, the last sampled one filled in."""
        sampled = self._sampled
        return [sampled[chunk.seq.id] if t == UNSAMPLED else t for t in chunk.tokens]

    def _without_pending(self, chunk: Chunk) -> Sequence:
        """Return the sequence up to this chunk with no token pending."""
        seq = chunk.seq
        if not self.async_launch:
            return seq
        true = copy(seq)
        true.tokens = seq.tokens[: chunk.start] + self._fed(chunk)
        return true

    def transfer(self, copies: Copies) -> None:
        assert not self.asleep
        for source, target in _in_order(copies.spills):
            self._host[target] = self._content(source)
        if copies.saves or copies.loads:
            self._waiting.append((self._asked + self._delay, copies))

    def _content(self, block: int) -> dict[int, int]:
        slots = range(block * self._size, (block + 1) * self._size)
        return {s % self._size: self._device[s] for s in slots if s in self._device}

    def finished_copies(self, wait: float = 0.0) -> tuple[list[int], list[int]]:
        self._asked += 1
        saved: list[int] = []
        loaded: list[int] = []
        while self._waiting and (wait or self._waiting[0][0] < self._asked):
            _, copies = self._waiting.popleft()
            for block, host in _in_order(copies.saves):
                self._host[host] = self._content(block)
                saved.append(block)
            for host, block in _in_order(copies.loads):
                for at, token in self._host[host].items():
                    self._device[block * self._size + at] = token
                loaded.append(block)
        return saved, loaded

    def failed_copies(self) -> list[Copies]:
        return []

    def read(self, blocks: list[tuple[int, int]]) -> list[dict[int, int]]:
        return [self._content(b) if b >= 0 else dict(self._host[h]) for b, h in blocks]

    def write(self, blocks: list[int], data: list[dict[int, int]]) -> None:
        for block, content in zip(blocks, data, strict=False):
            for at, token in content.items():
                self._device[block * self._size + at] = token

    def update(self, weights: object) -> None: ...

    def sleep(self) -> None:
        self._device.clear()
        self.asleep = True

    def wake(self) -> None:
        self.asleep = False

    def close(self) -> None: ...


def _in_order(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Split copies of runs into single blocks, in the order in which a device makes them."""
    return [(source + n, target + n) for source, target, count in runs(pairs) for n in range(count)]


class QuickRunner(MockRunner):
    """Sample what `script` returns, and check nothing: for timing the core."""

    def run(self, plan: StepPlan) -> dict[str, Sampled]:
        script = self._script
        return {c.seq.id: Sampled(script(c.seq)) for c in plan.chunks if c.sample}


__all__ = ["MockRunner", "NumberTokenizer", "QuickRunner", "Script", "hashed"]
