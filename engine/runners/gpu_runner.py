"""Model runner of a GPU: one copy in, one graph, one copy out, and no waiting between.

A step is launched before the host knows the tokens that the step before it sampled, as in vLLM V1
and mini-sglang. Block tables and sampled tokens stay on the device; the host packs the few integers
that it alone knows (`step_inputs`). An event signals the results: nothing on the way to the next
launch waits for the device.
"""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.step_plan import Chunk, Sampled, StepPlan
from drawloom.engine.kernels import block_copy, cascade
from drawloom.engine.kernels import sample as sampling
from drawloom.engine.kernels.decode import CROWD, spare_parts
from drawloom.engine.kernels.feed import feed
from drawloom.engine.kernels.tuning import DECODE, PREFILL, seconds_on_gpu
from drawloom.engine.kernels.tuning_batch import TuningBatch
from drawloom.engine.kernels.types import (
    BatchMeta,
    DecodeBatch,
    DeviceStep,
    KeyParts,
    PrefillBatch,
    SamplingRows,
)
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.kv_memory import KVStore
from drawloom.engine.ops.base import Ops
from drawloom.engine.ops.reference import ReferenceOps
from drawloom.engine.runners.cpu_runner import ModelRunner
from drawloom.engine.runners.cuda_events import record_event, use_device
from drawloom.engine.runners.cuda_graphs import StepGraphs
from drawloom.engine.runners.sampler import adjust_logits, is_adjusted, mask_unknown, score
from drawloom.engine.runners.step_inputs import Packed, SlotTable, StepShape
from drawloom.engine.runners.step_packing import UPDATES, Packer, Packing
from drawloom.errors import EngineError

Result = Callable[[], dict[str, Sampled]]
_IN_FLIGHT = 3


class GpuRunner(ModelRunner):
    """Run a model on one GPU; on a CPU, for tests, compute the same without graphs.

    The store has one block more than the cache knows of, for the writes of padding rows.

    Attributes:
        small_batch: use the fused products of small batches; None measures whether they are faster.
        trace: device events at the begin and end of each step, and its sequences; None disables it.
    """

    async_launch = True
    small_batch: bool | None = None

    def __init__(
        self,
        model: ModelConfig,
        weights: dict[str, Tensor],
        config: EngineConfig,
        blocks: int,
        device: torch.device,
        host_blocks: int = 0,
    ) -> None:
        use_device(device)
        super().__init__(model, weights, config, blocks, device, host_blocks)
        most, budget = config.max_sequences, config.max_batch_tokens
        longest = model.max_position
        if not model.window:
            longest = min(longest, blocks * config.block_size)
        width = -(-longest // config.block_size) + 1
        self.trace: list[tuple[Any, Any, set[str]]] | None = None
        self.slots = SlotTable(most, width, config.block_size)
        self._tables = torch.zeros(most + 1, width, dtype=torch.int32, device=device)
        self._picked = sampling.no_picks(most + 1, device)
        tokens = budget + most + 512
        tile_rows = cascade.tile_rows(model.heads, model.kv_heads)
        room = StepShape(
            tokens=tokens,
            decoding=most,
            chunks=most + 16,
            tiles=tokens,
            rows=tokens,
            sampled=most + 16,
            updates=max(UPDATES, most * width),
            shared_rows=self.slots.max_shared_rows(most, tile_rows),
        ).size
        pinned = device.type == "cuda"
        self._memory = torch.zeros(room, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(tokens, dtype=torch.int32, device=device)
        self._hosts = cycle(_buffers(room, torch.int32, pinned))
        self._outs = cycle(_buffers(most + 1, torch.int64, pinned))
        if pinned:
            self._tune(model)
        spare = spare_parts(model.kv_heads, CROWD)
        self._parts = KeyParts.allocate(most, model.heads, model.head_dim, spare, device)
        self._graphs = StepGraphs(
            self._logits, self._blank, self._memory, most, small_batch=self.small_batch
        )
        self.packer = Packer(
            self.slots,
            (model.heads, model.kv_heads, model.head_dim),
            padding_kv=blocks * config.block_size,
            sizes=self._graphs.sizes,
            cascades=model.window == 0,
        )
        if pinned:
            with torch.inference_mode():
                self._graphs.warm_up([self.packer.plain(size) for size in self._graphs.sizes])

    def _tune(self, model: ModelConfig) -> None:
        """Choose the fastest tilings of attention on this GPU."""
        key = (model.heads, model.kv_heads, model.head_dim)
        tables = torch.arange(self._blocks, dtype=torch.int32, device=self.device)
        keys, values = self._awake().layer(0)
        size = self.block_size
        with torch.inference_mode():
            for crowded, batch in ((False, CROWD // 2), (True, 2 * CROWD)):
                tokens = min(self._blocks * size, batch * 1024)
                tuning = TuningBatch(key, tables, keys, values, batch, tokens)
                DECODE.tune((*key, crowded), tuning.decode, seconds_on_gpu)
                if crowded:
                    PREFILL.tune(key, tuning.prefill, seconds_on_gpu)
                tuning.clear()

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
        """Launch a step; return a function that waits for its results.

        An error at the launch is raised by that function.
        """
        try:
            use_device(self.device)
            return self._launch(plan)
        except Exception as error:
            return partial(_fail, error)

    def _launch(self, plan: StepPlan) -> Result:
        store, traced = self._awake(), self.trace is not None
        began = record_event(self.device, timed=True) if traced else None
        if plan.copies:
            block_copy.copy(store.moved, self._upload(plan.copies))
        if not plan.chunks:
            return dict
        step = self.packer.pack(plan.chunks, next(self._hosts))
        if step.rest[0]:
            index, value = self._upload(step.rest)
            self._tables.view(-1)[index.long()] = value
        self._memory[: step.host.size].copy_(step.host.memory, non_blocking=True)
        packed, hidden = Packed(self._memory, step.host.shape), None
        if step.padded:
            logits = self._graphs.run(packed.shape)
        else:
            hidden = self._hidden(packed, False)
            logits = self.model.logits(hidden[: packed.shape.sampled])
        self._choose(logits, step, packed)
        if self.trace is not None:
            whose = {c.seq.id for c in plan.chunks}
            self.trace.append((began, record_event(self.device, timed=True), whose))
        return self._result(step, logits, hidden)

    def _upload(self, values: Any) -> Tensor:
        """Upload a few integers without waiting for the device."""
        data = torch.tensor(values, dtype=torch.int32, pin_memory=self.device.type == "cuda")
        return data.to(self.device, non_blocking=True)

    def _choose(self, logits: Tensor, step: Packing, packed: Packed) -> None:
        if not step.chosen:
            return
        adjusted = [(row, c) for row, c in step.chosen if is_adjusted(c)]
        if adjusted:
            logits = logits.to(torch.float32, copy=True)  # the model's own logits are reported
            for row, chunk in adjusted:
                adjust_logits(logits[row], chunk)
        how = SamplingRows(
            slots=packed.ints("sample_slots"),
            temperatures=packed.floats("temperatures"),
            keys=packed.longs("keys"),
            top_k=packed.ints("top_k"),
            top_p=packed.floats("top_p"),
            filtered=step.filtered,
        )
        sampling.sample(mask_unknown(logits, self.unknown), self._picked, how)

    def _result(self, step: Packing, logits: Tensor, hidden: Tensor | None) -> Result:
        """Begin to copy the results to the host; return a function that waits for them."""
        out = next(self._outs)
        out.copy_(self._picked, non_blocking=True)
        slots = [(c.seq.id, c.seq.slot) for _, c in step.chosen]
        logprobs = self._logprobs(logits, step.chosen)
        done, at = record_event(self.device), step.host.shape.sampled

        @torch.inference_mode()
        def wait() -> dict[str, Sampled]:
            done.synchronize()
            values = out.tolist()
            found = {name: _sampled(values[slot]) for name, slot in slots}
            for name, own, best, likely in logprobs:
                found[name].logprob = float(own)
                found[name].top = tuple(zip(likely.tolist(), best.tolist(), strict=True))
            first = at
            for chunk in step.scored:  # no later step of these is launched before this returns
                assert hidden is not None
                last = first + len(chunk.scored)
                scores = score(self.model, hidden[first:last], chunk.scored)
                found.setdefault(chunk.seq.id, Sampled(-1)).scores = scores
                first = last
            return found

        return wait

    def _logprobs(
        self, logits: Tensor, chosen: list[tuple[int, Chunk]]
    ) -> list[tuple[str, Tensor, Tensor, Tensor]]:
        """Begin to copy the log-probabilities that requests ask for.

        Returns:
            Of each: sequence id, log-probability of the picked token, the highest
            log-probabilities, and their tokens.
        """
        found = []
        for row, chunk in chosen:
            if chunk.seq.params.logprobs:
                table = logits[row].float().log_softmax(-1)
                token = sampling.picked_tokens(self._picked[chunk.seq.slot : chunk.seq.slot + 1])
                known = mask_unknown(table[None], self.unknown)[0]
                best = known.topk(min(chunk.seq.params.top_logprobs, known.shape[0]))
                parts = (table[token], best.values, best.indices)
                own, values, indices = (self._to_host(part) for part in parts)
                found.append((chunk.seq.id, own, values, indices))
        return found

    def _to_host(self, data: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return data
        return torch.empty_like(data, device="cpu", pin_memory=True).copy_(data, non_blocking=True)

    # --- computation ----------------------------------------------------------------------

    def _logits(self, packed: Packed, small_batch: bool) -> Tensor:
        return self.model.logits(self._hidden(packed, small_batch)[: packed.shape.sampled])

    def _hidden(self, packed: Packed, small_batch: bool) -> Tensor:
        """Compute the hidden states [R, H] of the packed rows."""
        shape, tokens = packed.shape, self._tokens[: packed.shape.tokens]
        feed(
            packed.ints("ids"),
            packed.ints("clear_slots"),
            packed.ints("index"),
            packed.ints("value"),
            tokens=tokens,
            picked=self._picked,
            tables=self._tables,
        )
        meta = BatchMeta(
            positions=packed.ints("positions"),
            kv_slots=packed.ints("kv_slots"),
            rows=packed.ints("rows"),
            query_lengths=[],
            contexts=[],
            tables=[],
            window=self._spec.window,
            every=not shape.chunks,
            step=self._step(packed),
        )
        forward = self.model.forward_small if small_batch else self.model
        return forward(tokens, self._awake(), meta)

    def _blank(self, packed: Packed) -> None:
        packed.memory.zero_()  # contexts of no tokens
        for name in ("clear_slots", "sample_slots", "index", "shared_rows"):
            packed.ints(name).fill_(-1)
        packed.ints("kv_slots").fill_(self._blocks * self.block_size)
        for name in ("slots", "chunk_slots"):
            packed.ints(name).fill_(self.slots.padding_slot)

    def _step(self, packed: Packed) -> DeviceStep:
        shape, window, tables = packed.shape, self._spec.window, self._tables
        step = DeviceStep(shape.decoding)
        if shape.decoding:
            ints = packed.ints
            step.decodes = decodes = DecodeBatch(tables, ints("slots"), ints("contexts"), window)
            if shape.shared_rows:
                decodes.shared_tokens, decodes.shared_rows = (
                    ints("shared_tokens"),
                    ints("shared_rows"),
                )
                spec, shared = self._spec, shape.shared_rows // self.packer.tile_rows
                step.shared_parts = cascade.allocate_shared(
                    shared, shape.decoding, spec.heads, spec.kv_heads, spec.head_dim, self.device
                )
            spare = spare_parts(self._spec.kv_heads, shape.decoding)
            step.parts = self._parts.narrow(shape.decoding, spare)
        if shape.chunks:
            step.tile_queries, tiles = shape.tile_queries, packed.ints("tiles").view(2, -1)
            step.prefills = PrefillBatch(
                tables=tables,
                slots=packed.ints("chunk_slots"),
                contexts=packed.ints("chunk_contexts"),
                starts=packed.ints("starts"),
                tiles=tiles,
                window=window,
            )
        return step

    # --- weights and memory ---------------------------------------------------------------

    def update(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights, and drop the graphs that read the old ones."""
        super().update(weights)
        self._graphs.forget()

    def transfer(self, copies: Copies) -> None:
        """Begin copies of KV blocks between the device and host memory."""
        use_device(self.device)
        super().transfer(copies)

    @torch.inference_mode()
    def read(self, blocks: list[tuple[int, int]]) -> Tensor:
        """Return the contents of (device block, or -1; host block) pairs, in host memory."""
        store, found = self._awake(), list[Tensor]()
        here = [block for block, _ in blocks if block >= 0]
        out = torch.empty(len(here), *store.moved.shape[1:], dtype=self._dtype, device=self.device)
        if here:
            block_copy.gather(store.moved, self._upload(here), out)
        gathered = iter(out.cpu())
        if self.host is not None:
            self.host.synchronize()
        for block, host in blocks:
            if block >= 0:
                found.append(next(gathered))
            else:
                assert self.host is not None
                found.append(self.host.memory[host])
        return store.seen(torch.stack(found) if found else out.cpu())

    @torch.inference_mode()
    def write(self, blocks: list[int], data: Tensor) -> None:
        """Write contents, as `read` returns them, to device blocks."""
        if blocks:
            store = self._awake()
            content = store.seen(data[: len(blocks)]).contiguous().to(self.device)
            block_copy.scatter(store.moved, self._upload(blocks), content)

    def sleep(self) -> None:
        """Free the KV memory and the graphs, and move the weights to host memory."""
        self._graphs.forget()
        super().sleep()


def _buffers(size: int, dtype: torch.dtype, pinned: bool) -> list[Tensor]:
    return [torch.zeros(size, dtype=dtype, pin_memory=pinned) for _ in range(_IN_FLIGHT)]


def _sampled(picked: int) -> Sampled:
    if sampling.is_finite(picked):
        return Sampled(sampling.picked_token(picked))
    why = "no token can be chosen: the model's logits are NaN or infinite, or all are excluded"
    return Sampled(-1, error=EngineError(why))


def _fail(error: Exception) -> dict[str, Sampled]:
    raise error


__all__ = ["GpuRunner"]
