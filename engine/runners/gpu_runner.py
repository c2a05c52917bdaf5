"""The model runner of a GPU: one copy in, one graph, one copy out, and no waiting between.

A step is launched before the host knows what the last one said. Block tables and the tokens that
were just said stay on the device; the host packs the few integers that it alone knows
(`step_inputs`). Results come back by an event: nothing on the way to the next launch
waits for the device (vLLM V1's and mini-sglang's overlap; research/engines.md §1.2).
"""

import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.step_plan import Chunk, Sampled, StepPlan
from drawloom.engine.kernels import block_copy as moving
from drawloom.engine.kernels import cascade
from drawloom.engine.kernels import sample as choosing
from drawloom.engine.kernels.decode import CROWD, Decodes, Parts, spare_parts
from drawloom.engine.kernels.feed import feed
from drawloom.engine.kernels.prefill import Prefills
from drawloom.engine.kernels.sample import chosen, nothing, sample, unpack
from drawloom.engine.kernels.tuning import DECODE, PREFILL, seconds_on_gpu
from drawloom.engine.kernels.tuning_batch import Trial
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.kv_memory import KVStore
from drawloom.engine.ops.base import BatchMeta, Ops
from drawloom.engine.ops.reference import ReferenceOps
from drawloom.engine.ops.step import Step
from drawloom.engine.runners.cpu_runner import ModelRunner
from drawloom.engine.runners.cuda_graphs import StepGraphs
from drawloom.engine.runners.sampler import score, shape, shaped, without
from drawloom.engine.runners.step_inputs import Layout, Packed, Seats
from drawloom.engine.runners.step_packing import UPDATES, Packer, Packing
from drawloom.errors import EngineError

Result = Callable[[], dict[str, Sampled]]
_IN_FLIGHT = 3


class GpuRunner(ModelRunner):
    """A model on one GPU. On a CPU it computes the same without graphs, for tests.

    The store has one block more than the cache knows of: what rows of padding write goes there.

    Attributes:
        trace: where the device's events at the beginning and the end of each step go, and whose it
            was; None is nowhere.
    """

    async_launch = True

    def __init__(
        self,
        model: ModelConfig,
        weights: dict[str, Tensor],
        config: EngineConfig,
        blocks: int,
        device: torch.device,
        host_blocks: int = 0,
    ) -> None:
        _use(device)
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
        tokens = budget + most + 512
        room = Layout(
            tokens,
            most,
            most + 16,
            tokens,
            tokens,
            most + 16,
            max(UPDATES, most * width),
            self.seats.members(most, cascade.queries(model.heads, model.kv_heads)),
        ).size
        pinned = device.type == "cuda"
        self._memory = torch.zeros(room, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(tokens, dtype=torch.int32, device=device)
        self._hosts = cycle(
            [torch.zeros(room, dtype=torch.int32, pin_memory=pinned) for _ in range(_IN_FLIGHT)]
        )
        self._outs = cycle(
            [torch.zeros(most + 1, dtype=torch.int64, pin_memory=pinned) for _ in range(_IN_FLIGHT)]
        )
        if pinned:
            self._tune(model)
        spare = spare_parts(model.kv_heads, CROWD)
        self._parts = Parts.room(most, model.heads, model.head_dim, spare, device)
        self._graphs = StepGraphs(self._logits, self._blank, self._memory, most)
        self.packer = Packer(
            self.seats, (model.heads, model.kv_heads, model.head_dim),
            blocks * config.block_size, self._graphs.sizes, model.window == 0,
        )  # fmt: skip
        if pinned:
            with torch.inference_mode():
                self._graphs.warm_up([self.packer.plain(size) for size in self._graphs.sizes])

    def _tune(self, model: ModelConfig) -> None:
        """Choose the tilings of attention that are the fastest here."""
        key = (model.heads, model.kv_heads, model.head_dim)
        tables = torch.arange(self._blocks, dtype=torch.int32, device=self.device)
        keys, values = self._awake().layer(0)
        size = self.block_size
        with torch.inference_mode():
            for crowded, batch in ((False, CROWD // 2), (True, 2 * CROWD)):
                tokens = min(self._blocks * size, batch * 1024)
                trial = Trial(key, tables, keys, values, batch, tokens)
                DECODE.tune((*key, crowded), trial.decode, seconds_on_gpu)
                if crowded:
                    PREFILL.tune(key, trial.prefill, seconds_on_gpu)
                trial.clear()

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
            _use(self.device)
            return self._launch(plan)
        except Exception as error:
            failure = error

            def fail() -> dict[str, Sampled]:
                raise failure

            return fail

    def _launch(self, plan: StepPlan) -> Result:
        store, began = self._awake(), self._event(timed=True) if self.trace is not None else None
        if plan.copies:
            moving.copy(store.moved, self._upload(plan.copies))
        if not plan.chunks:
            return dict
        step = self.packer.pack(plan.chunks, next(self._hosts))
        if step.rest[0]:
            index, value = self._upload(step.rest)
            self._tables.view(-1)[index.long()] = value
        self._memory[: step.host.size].copy_(step.host.memory, non_blocking=True)
        packed, hidden = Packed(self._memory, step.host.layout), None
        if step.padded:
            logits = self._graphs.run(packed.layout)
        else:
            hidden = self._hidden(packed, False)
            logits = self.model.logits(hidden[: packed.layout.sampled])
        self._choose(logits, step, packed)
        if self.trace is not None:
            whose = {c.seq.id for c in plan.chunks}
            self.trace.append((began, self._event(timed=True), whose))
        return self._result(step, logits, hidden)

    def _upload(self, values: Any) -> Tensor:
        """A few integers, without waiting for what the device does now."""
        data = torch.tensor(values, dtype=torch.int32, pin_memory=self.device.type == "cuda")
        return data.to(self.device, non_blocking=True)

    def _choose(self, logits: Tensor, step: Packing, packed: Packed) -> None:
        if not step.chosen:
            return
        shaping = [(row, c) for row, c in step.chosen if shaped(c)]
        if shaping:
            logits = logits.to(torch.float32, copy=True)  # what the model said is reported
            for row, chunk in shaping:
                shape(logits[row], chunk)
        sample(
            without(logits, self.unknown), self._picked,
            packed.ints("said_by"), packed.floats("temperatures"),
            packed.longs("keys"), packed.ints("top_k"), packed.floats("top_p"), step.filtered,
        )  # fmt: skip

    def _result(self, step: Packing, logits: Tensor, hidden: Tensor | None) -> Result:
        """What came of a step, once it is asked for. Copies begin now."""
        out = next(self._outs)
        out.copy_(self._picked, non_blocking=True)
        seats = [(c.seq.id, c.seq.slot) for _, c in step.chosen]
        told = self._probabilities(logits, step.chosen)
        done, at = self._event(), step.host.layout.sampled

        @torch.inference_mode()
        def wait() -> dict[str, Sampled]:
            done.synchronize()
            values = out.tolist()
            found = {name: _sampled(values[seat]) for name, seat in seats}
            for name, own, best, likely in told:
                found[name].logprob = float(own)
                found[name].top = tuple(zip(likely.tolist(), best.tolist(), strict=True))
            first = at
            for chunk in step.scored:  # nothing of theirs is launched before this is known
                assert hidden is not None
                last = first + len(chunk.scored)
                scores = score(self.model, hidden[first:last], chunk.scored)
                found.setdefault(chunk.seq.id, Sampled(-1)).scores = scores
                first = last
            return found

        return wait

    def _probabilities(
        self, logits: Tensor, chosen: list[tuple[int, Chunk]]
    ) -> list[tuple[str, Tensor, Tensor, Tensor]]:
        """For those who ask: their name, the log-probability of the token picked, the likeliest
        log-probabilities and tokens; all on their way to the host."""
        found = []
        for row, chunk in chosen:
            if chunk.seq.params.logprobs:
                table = logits[row].float().log_softmax(-1)
                token = choosing.tokens(self._picked[chunk.seq.slot : chunk.seq.slot + 1])
                known = without(table[None], self.unknown)[0]
                best = known.topk(min(chunk.seq.params.top_logprobs, known.shape[0]))
                parts = (table[token], best.values, best.indices)
                own, values, indices = (self._to_host(part) for part in parts)
                found.append((chunk.seq.id, own, values, indices))
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

    # --- what it computes -----------------------------------------------------------------

    def _logits(self, packed: Packed, few: bool) -> Tensor:
        return self.model.logits(self._hidden(packed, few)[: packed.layout.sampled])

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
        for name in ("seats", "chunk_seats"):
            packed.ints(name).fill_(self.seats.nobody)

    def _step(self, packed: Packed) -> Step:
        layout, window, tables = packed.layout, self._spec.window, self._tables
        step = Step(layout.decoding)
        if layout.decoding:
            ints = packed.ints
            step.decodes = at = Decodes(tables, ints("seats"), ints("contexts"), window)
            if layout.members:
                at.since, at.members = ints("since"), ints("members")
                spec, shared = self._spec, layout.members // self.packer.tile
                step.before = cascade.room(
                    shared, layout.decoding, spec.heads, spec.kv_heads, spec.head_dim, self.device
                )
            spare = spare_parts(self._spec.kv_heads, layout.decoding)
            step.parts = self._parts.of(layout.decoding, spare)
        if layout.chunks:
            step.size, tiles = layout.queries, packed.ints("tiles").view(2, -1)
            step.prefills = Prefills(
                tables, packed.ints("chunk_seats"), packed.ints("chunk_contexts"),
                packed.ints("starts"), tiles, window,
            )  # fmt: skip
        return step

    # --- weights and memory ---------------------------------------------------------------

    def update(self, weights: dict[str, Tensor]) -> None:
        super().update(weights)
        self._graphs.forget()  # they read what was replaced

    def transfer(self, copies: Copies) -> None:
        _use(self.device)
        super().transfer(copies)

    @torch.inference_mode()
    def read(self, places: list[tuple[int, int]]) -> Tensor:
        store, found = self._awake(), list[Tensor]()
        here = [block for block, _ in places if block >= 0]
        out = torch.empty(len(here), *store.moved.shape[1:], dtype=self._dtype, device=self.device)
        if here:
            moving.gather(store.moved, self._upload(here), out)
        gathered = iter(out.cpu())
        if self.host is not None:
            self.host.synchronize()
        for block, host in places:
            if block >= 0:
                found.append(next(gathered))
            else:
                assert self.host is not None
                found.append(self.host.memory[host])
        return store.seen(torch.stack(found) if found else out.cpu())

    @torch.inference_mode()
    def write(self, blocks: list[int], data: Tensor) -> None:
        if blocks:
            store = self._awake()
            content = store.seen(data[: len(blocks)]).contiguous().to(self.device)
            moving.scatter(store.moved, self._upload(blocks), content)

    def sleep(self) -> None:
        self._graphs.forget()
        super().sleep()


def _sampled(picked: int) -> Sampled:
    if chosen(picked):
        return Sampled(unpack(picked))
    why = "no token can be chosen: the model's logits are NaN or infinite, or all are ruled out"
    return Sampled(-1, error=EngineError(why))


def _use(device: torch.device) -> None:
    """Kernels and events are those of the thread's device."""
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)


class _Passed:
    """The event of a device that is always done."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: "_Passed") -> float:
        """Milliseconds."""
        return 1e3 * (other._at - self._at)


__all__ = ["GpuRunner"]
