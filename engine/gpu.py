"""The model runner of a GPU: one copy in, one graph, one copy out, and no waiting between.

A step is launched before the host knows what the last one said. Block tables and the tokens that
were just said stay on the device; the host packs the few integers that it alone knows
(`drawloom.engine.feeder`). Results come back by an event: nothing on the way to the next launch
waits for the device (vLLM V1's and mini-sglang's overlap; research/engines.md §1.2).
"""

import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.feeder import Layout, Packed, Seats, fed, put
from drawloom.engine.graphs import StepGraphs
from drawloom.engine.kernels import blocks as moving
from drawloom.engine.kernels import cascade, prefill
from drawloom.engine.kernels.chip import processors
from drawloom.engine.kernels.decode import Decodes, Parts
from drawloom.engine.kernels.feed import feed
from drawloom.engine.kernels.prefill import Prefills
from drawloom.engine.kernels.sample import nothing, sample, tokens, unpack
from drawloom.engine.kv import KVStore
from drawloom.engine.ops.base import BatchMeta, Ops
from drawloom.engine.ops.reference import ReferenceOps
from drawloom.engine.ops.step import Step
from drawloom.engine.plan import Chunk, Sampled, StepPlan
from drawloom.engine.runner import ModelRunner
from drawloom.engine.sampling import score, shape, shaped

Result = Callable[[], dict[str, Sampled]]
_IN_FLIGHT = 3


class GpuRunner(ModelRunner):
    """A model on one GPU. On a CPU it computes the same without graphs, for tests.

    The store has one block more than the cache knows of: what rows of padding write goes there.

    Attributes:
        trace: where the device's events at the beginning and the end of each step go, and whose it
            was; None is nowhere.
    """

    ahead = True

    def __init__(
        self,
        model: ModelConfig,
        weights: dict[str, Tensor],
        config: EngineConfig,
        blocks: int,
        device: torch.device,
        host_blocks: int = 0,
    ) -> None:
        super().__init__(model, weights, config, blocks, device, host_blocks)
        most, budget = config.max_sequences, config.max_batch_tokens
        longest = model.max_position if model.window else min(
            model.max_position, blocks * config.block_size
        )  # fmt: skip
        width = -(-longest // config.block_size) + 1
        self.trace: list[tuple[Any, Any, set[str]]] | None = None
        self.seats = Seats(most, width, config.block_size)
        self._tables = torch.zeros(most + 1, width, dtype=torch.int32, device=device)
        self._picked = nothing(most + 1, device)
        room = Layout(
            budget + most, most, most, budget + most, budget + most, most,
            most * width, 2 * (most + 64),
        ).size  # fmt: skip
        pinned = device.type == "cuda"
        self._memory = torch.zeros(room, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(budget + most, dtype=torch.int32, device=device)
        self._hosts = cycle(
            [torch.zeros(room, dtype=torch.int32, pin_memory=pinned) for _ in range(_IN_FLIGHT)]
        )
        self._outs = cycle(
            [torch.zeros(most + 1, dtype=torch.int64, pin_memory=pinned) for _ in range(_IN_FLIGHT)]
        )
        parts = -(-4 * processors() // model.kv_heads)
        self._parts = Parts.room(most, model.heads, model.head_dim, parts, device)
        self._graphs = StepGraphs(self._logits, self._blank, self._memory, most)
        self._tile = cascade.queries(model.heads, model.kv_heads)
        if pinned:
            with torch.inference_mode():
                self._graphs.warm_up()

    def _make_ops(self, config: EngineConfig) -> Ops:
        if self.device.type != "cuda":
            return ReferenceOps()
        from drawloom.engine.ops.triton import TritonOps

        return TritonOps()

    def _new_store(self) -> KVStore:
        count = self._blocks + 1
        return KVStore(self._spec, count, self.block_size, self.device, self._dtype, paged=True)

    # --- a step ---------------------------------------------------------------------------

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Result:
        try:
            return self._launch(plan)
        except Exception as error:
            failure = error

            def fail() -> dict[str, Sampled]:
                raise failure

            return fail

    def _launch(self, plan: StepPlan) -> Result:
        store, began = self._awake(), self._event(timed=True) if self.trace is not None else None
        if plan.copies:
            pairs = torch.tensor(plan.copies, dtype=torch.int32).to(self.device)
            moving.copy(store.moved, pairs)
        if not plan.chunks:
            return dict
        decodes = [c for c in plan.chunks if _decodes(c)]
        others = [c for c in plan.chunks if not _decodes(c)]
        chosen = decodes + [c for c in others if _chooses(c)]
        scored = [c for c in others if c.scored]
        if others:
            packed, filtered = self._pack(decodes, others, chosen, scored)
            hidden = self._hidden(packed, False)
            logits = self.model.logits(hidden[: len(chosen)]) if chosen else hidden[:0]
        else:
            packed, filtered = self._pack_decodes(decodes)
            hidden, logits = None, self._graphs.run(packed.layout)
        if chosen:
            self._choose(logits, chosen, packed, filtered)
        if self.trace is not None:
            whose = {c.seq.id for c in plan.chunks}
            self.trace.append((began, self._event(timed=True), whose))
        return self._result(chosen, scored, logits, hidden)

    def _choose(self, logits: Tensor, chosen: list[Chunk], packed: Packed, filtered: bool) -> None:
        shaping = [(row, c) for row, c in enumerate(chosen) if shaped(c)]
        if shaping:
            logits = logits.to(torch.float32, copy=True)  # what the model said is reported
            for row, chunk in shaping:
                shape(logits[row], chunk)
        sample(
            logits, self._picked, packed.ints("said_by"), packed.floats("temperatures"),
            packed.longs("keys"), packed.ints("top_k"), packed.floats("top_p"), filtered,
        )  # fmt: skip

    def _result(
        self, chosen: list[Chunk], scored: list[Chunk], logits: Tensor, hidden: Tensor | None
    ) -> Result:
        """What came of a step, once it is asked for. Copies begin now."""
        out = next(self._outs)
        out.copy_(self._picked, non_blocking=True)
        seats = [c.seq.seat for c in chosen]
        told = self._probabilities(logits, chosen)
        done = self._event()

        @torch.inference_mode()
        def wait() -> dict[str, Sampled]:
            done.synchronize()
            values = out.tolist()
            found = {
                c.seq.id: Sampled(unpack(values[seat]))
                for c, seat in zip(chosen, seats, strict=True)
            }
            for row, own, best, likely in told:
                result = found[chosen[row].seq.id]
                result.logprob = float(own)
                result.top = tuple(zip(likely.tolist(), best.tolist(), strict=True))
            at = len(chosen)
            for chunk in scored:  # nothing of theirs is launched before this is known
                assert hidden is not None
                count = len(chunk.scored)
                scores = score(self.model, hidden[at : at + count], chunk.scored)
                found.setdefault(chunk.seq.id, Sampled(-1)).scores = scores
                at += count
            return found

        return wait

    def _probabilities(
        self, logits: Tensor, chosen: list[Chunk]
    ) -> list[tuple[int, Tensor, Tensor, Tensor]]:
        """For those who ask: their row, the log-probability of the token picked, the likeliest
        log-probabilities and tokens; all on their way to the host."""
        found = []
        for row, chunk in enumerate(chosen):
            if chunk.seq.params.logprobs:
                table = logits[row].float().log_softmax(-1)
                token = tokens(self._picked[chunk.seq.seat : chunk.seq.seat + 1])
                best = table.topk(min(chunk.seq.params.top_logprobs, table.shape[0]))
                parts = (table[token], best.values, best.indices)
                own, values, indices = (self._to_host(part) for part in parts)
                found.append((row, own, values, indices))
        return found

    def _to_host(self, data: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return data
        return torch.empty_like(data, device="cpu", pin_memory=True).copy_(data, non_blocking=True)

    def _event(self, timed: bool = False) -> Any:
        if self.device.type != "cuda":
            return _Passed()
        event = torch.cuda.Event(enable_timing=timed)
        event.record()
        return event

    # --- what it reads --------------------------------------------------------------------

    def _pack_decodes(self, decodes: list[Chunk]) -> tuple[Packed, bool]:
        """One token of each, padded to the size of a graph."""
        seats = [c.seq.seat for c in decodes]
        index, value = self.seats.updates(decodes)
        alike = None if self._spec.window else self.seats.alike(seats, self._tile)
        size = self._graphs.size(len(decodes))
        members = 0
        if alike is not None:  # one layout for all ways to be alike at this size
            members = self._tile * (-(-size // self._tile) + 8)
        host = Packed(next(self._hosts), self._graphs.layout(size, members))
        room = host.layout.updates
        if len(index) > room:
            self._bring(index[room:], value[room:])
        self._put_decodes(host, decodes, seats, alike)
        put(host.ints("index"), index[:room], -1)
        put(host.ints("value"), value[:room], 0)
        filtered = self.seats.sampling(decodes, host)
        return self._send(host), filtered

    def _put_decodes(
        self,
        host: Packed,
        decodes: list[Chunk],
        seats: list[int],
        alike: tuple[list[int], list[int]] | None,
    ) -> None:
        places, rows = np.array([c.start for c in decodes], np.int32), np.array(seats, np.int32)
        spare = self._blocks * self.block_size
        put(host.ints("seats"), rows, self.seats.nobody)
        put(host.ints("contexts"), places + 1, 0)
        for name, values, rest in (
            ("ids", [fed(c) for c in decodes], 0),
            ("positions", places, 0),
            ("slots", self.seats.slots(rows, places), spare),
            ("says", rows, -1),
        ):
            put(host.ints(name)[: host.layout.decoding], values, rest)
        if alike is not None:
            put(host.ints("since"), alike[0], 0)
            put(host.ints("members"), alike[1], -1)

    def _pack(
        self,
        decodes: list[Chunk],
        others: list[Chunk],
        chosen: list[Chunk],
        scored: list[Chunk],
    ) -> tuple[Packed, bool]:
        """Tokens of decoding sequences, then whole chunks; nothing is padded."""
        seats = [c.seq.seat for c in decodes]
        index, value = self.seats.updates(decodes + others)
        lengths = [len(c.tokens) for c in others]
        size = prefill.queries(self._spec.heads, self._spec.kv_heads, max(lengths))
        tiles = prefill.tiles(lengths, size)
        starts = np.cumsum([0, *lengths])
        at = starts + len(decodes)
        rows = list(range(len(decodes)))
        rows += [int(at[i + 1]) - 1 for i, c in enumerate(others) if _chooses(c)]
        for i, chunk in enumerate(others):
            first = int(at[i]) + chunk.score
            rows += range(first, first + len(chunk.scored))
        layout = Layout(
            int(at[-1]), len(decodes), len(others), len(tiles), len(rows), len(chosen),
            len(index), 0, size,
        )  # fmt: skip
        host = Packed(next(self._hosts), layout)
        self._put_decodes(host, decodes, seats, None)
        for begin, end, chunk in zip(at, at[1:], others, strict=False):
            places = np.arange(chunk.start, chunk.end, dtype=np.int32)
            seat = np.full(len(places), chunk.seq.seat, np.int32)
            says = np.full(len(places), -1, np.int32)
            says[-1] = chunk.seq.seat if _chooses(chunk) else -1
            ids = chunk.tokens if len(chunk.tokens) > 1 else [fed(chunk)]
            for name, values in (
                ("ids", ids), ("positions", places), ("slots", self.seats.slots(seat, places)),
                ("says", says),
            ):  # fmt: skip
                put(host.ints(name)[int(begin) : int(end)], values, 0)
        put(host.ints("chunk_seats"), [c.seq.seat for c in others], 0)
        put(host.ints("chunk_contexts"), [c.end for c in others], 0)
        put(host.ints("starts"), starts, 0)
        put(host.ints("tiles"), [row for row, _ in tiles] + [first for _, first in tiles], 0)
        put(host.ints("rows"), rows, 0)
        put(host.ints("index"), index, -1)
        put(host.ints("value"), value, 0)
        filtered = self.seats.sampling(chosen, host)
        return self._send(host), filtered

    def _send(self, host: Packed) -> Packed:
        self._memory[: host.size].copy_(host.memory, non_blocking=True)
        return Packed(self._memory, host.layout)

    def _bring(self, index: list[int], value: list[int]) -> None:
        """More changes of block tables than a graph has room for."""
        changes = torch.tensor([index, value], dtype=torch.int32).to(self.device)
        self._tables.view(-1)[changes[0].long()] = changes[1]

    # --- what it computes -----------------------------------------------------------------

    def _logits(self, packed: Packed, few: bool) -> Tensor:
        return self.model.logits(self._hidden(packed, few))

    def _hidden(self, packed: Packed, few: bool) -> Tensor:
        """Hidden states [R, H] of the rows asked for, or of all tokens."""
        layout, said = packed.layout, self._tokens[: packed.layout.tokens]
        feed(
            packed.ints("ids"), packed.ints("says"), packed.ints("index"), packed.ints("value"),
            said, self._picked, self._tables,
        )  # fmt: skip
        meta = BatchMeta(
            packed.ints("positions"), packed.ints("slots"), packed.ints("rows"), [], [], [],
            self._spec.window, every=not layout.chunks, step=self._step(packed),
        )  # fmt: skip
        forward = self.model.few if few else self.model
        return forward(said, self._awake(), meta)

    def _blank(self, packed: Packed) -> None:
        packed.memory.zero_()  # contexts of nothing
        for name in ("says", "said_by", "index", "members"):
            packed.ints(name).fill_(-1)
        packed.ints("slots").fill_(self._blocks * self.block_size)
        packed.ints("seats").fill_(self.seats.nobody)

    def _step(self, packed: Packed) -> Step:
        layout, window, tables = packed.layout, self._spec.window, self._tables
        step = Step(layout.decoding)
        if layout.decoding:
            ints = packed.ints
            step.decodes = at = Decodes(tables, ints("seats"), ints("contexts"), window)
            if layout.members:
                at.since, at.members = ints("since"), ints("members")
                step.before = self._before(layout)
            step.parts = self._parts.of(layout.decoding)
        if layout.chunks:
            step.size, tiles = layout.queries, packed.ints("tiles").view(2, -1)
            step.prefills = Prefills(
                tables, packed.ints("chunk_seats"), packed.ints("chunk_contexts"),
                packed.ints("starts"), tiles, window,
            )  # fmt: skip
        return step

    def _before(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Room for what shared beginnings come to, read in enough parts to keep the device busy."""
        heads, depth = self._spec.heads, self._spec.head_dim
        tiles = layout.members // self._tile
        pieces = min(16, max(1, 4 * processors() // (tiles * self._spec.kv_heads)))
        shape = (pieces, layout.decoding, heads)
        return (
            torch.empty(*shape, depth, dtype=torch.float32, device=self.device),
            torch.empty(shape, dtype=torch.float32, device=self.device),
        )

    # --- weights and memory ---------------------------------------------------------------

    def update(self, weights: dict[str, Tensor]) -> None:
        super().update(weights)
        self._graphs.forget()  # they read what was replaced

    def sleep(self) -> None:
        self._graphs.forget()
        super().sleep()


class _Passed:
    """The event of a device that is always done."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: "_Passed") -> float:
        """Milliseconds."""
        return 1e3 * (other._at - self._at)


def _chooses(chunk: Chunk) -> bool:
    """Whether a token is chosen behind it."""
    return chunk.sample and chunk.seq.params.max_tokens > 0


def _decodes(chunk: Chunk) -> bool:
    """Whether it is the one token that a sequence said last, to say another."""
    return len(chunk.tokens) == 1 and chunk.score < 0 and _chooses(chunk)


__all__ = ["GpuRunner"]
