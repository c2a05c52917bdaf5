"""Model runner: carries out step plans on a CPU."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.step_plan import Chunk, Sampled, StepPlan
from drawloom.engine.kernels.types import BatchMeta
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.kv_memory import HostTier, KVStore
from drawloom.engine.models.decoder import Decoder
from drawloom.engine.ops.base import Ops
from drawloom.engine.runners.sampler import sample, score
from drawloom.errors import ConfigError, EngineError


class ModelRunner:
    """Run a model on one device, computing a step when its result is asked for.

    Args:
        weights: by Hugging Face name; taken out of the dict.
        blocks: KV blocks on the device.
        host_blocks: KV blocks in host memory behind them; 0 is no host tier.

    Attributes:
        unknown: ids that the tokenizer has no token for, ascending; never sampled.
    """

    async_launch = False

    def __init__(
        self,
        model: ModelConfig,
        weights: dict[str, Tensor],
        config: EngineConfig,
        blocks: int,
        device: torch.device,
        host_blocks: int = 0,
    ) -> None:
        self.device, self.block_size = device, config.block_size
        self._spec, self._blocks = model, blocks
        self.unknown: tuple[int, ...] = ()
        self._dtype = weights["model.norm.weight"].dtype
        self.ops = self._make_ops(config)
        self.model = Decoder(model, weights, self.ops, device)
        self.store: KVStore | None = self._new_store()
        self.host = HostTier(self.store, host_blocks) if host_blocks else None

    def _make_ops(self, config: EngineConfig) -> Ops:
        if config.deterministic:
            from drawloom.engine.ops.deterministic import DeterministicOps

            return DeterministicOps()
        if self.device.type == "cpu":
            from drawloom.engine.ops.cpu import CpuOps

            return CpuOps(int8=config.weights == "int8")
        from drawloom.engine.ops.reference import ReferenceOps

        return ReferenceOps()

    def _new_store(self) -> KVStore:
        return KVStore(self._spec, self._blocks, self.block_size, self.device, self._dtype)

    def launch(self, plan: StepPlan) -> Callable[[], dict[str, Sampled]]:
        """Return a function that computes the step.

        Computing at once would gain nothing, and delay the results of the step before.
        """
        return lambda: self.run(plan)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> dict[str, Sampled]:
        """Compute a step; return the results by sequence id."""
        store = self._awake()
        for source, target, count in plan.copies:
            store.copy(source, target, count)
        if not plan.chunks:
            return {}
        wanted = [c for c in plan.chunks if c.sample or c.scored]
        tokens, meta, spans = self._inputs(plan)
        hidden = self.model(tokens, store, meta)
        if not wanted:
            return {}
        return self._read_out(wanted, hidden, spans)

    def _read_out(
        self, chunks: list[Chunk], hidden: Tensor, spans: dict[str, tuple[int, int]]
    ) -> dict[str, Sampled]:
        """Sample and score; `hidden` [R, H] has, chunk by chunk, rows to score, then to sample."""
        sampled = [c for c in chunks if c.sample and c.seq.params.max_tokens]
        rows = [sum(spans[c.seq.id]) - 1 for c in sampled]
        out: dict[str, Sampled] = {}
        if sampled:
            last = hidden[torch.tensor(rows, device=hidden.device)]
            out = sample(self.model.logits(last), sampled, self.unknown)
        for chunk in chunks:
            if scored := chunk.scored:
                start = spans[chunk.seq.id][0]
                values = score(self.model, hidden[start : start + len(scored)], scored)
                out.setdefault(chunk.seq.id, Sampled(-1)).scores = values
        return out

    def _inputs(self, plan: StepPlan) -> tuple[Tensor, BatchMeta, dict[str, tuple[int, int]]]:
        """Return the tokens [T], their positions, and (first row, rows) of each sequence."""
        size = self.block_size
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        spans: dict[str, tuple[int, int]] = {}
        for chunk in plan.chunks:
            begin, blocks, at = len(tokens), chunk.blocks, chunk.start
            tokens += chunk.tokens
            count = len(chunk.tokens)
            if count == 1:
                positions.append(at)
                slots.append(blocks[at // size] * size + at % size)
            else:
                positions += range(at, at + count)
                slots += [blocks[p // size] * size + p % size for p in range(at, at + count)]
            first = len(rows)
            scored = len(chunk.scored) if chunk.score >= 0 else 0
            rows += range(begin + chunk.score, begin + chunk.score + scored)
            if chunk.sample and chunk.seq.params.max_tokens:
                rows.append(len(tokens) - 1)
            spans[chunk.seq.id] = (first, len(rows) - first)
        packed = torch.tensor([tokens, positions, slots], dtype=torch.int64).to(self.device)
        meta = BatchMeta(
            positions=packed[1],
            kv_slots=packed[2],
            rows=torch.tensor(rows, dtype=torch.int64).to(self.device),
            query_lengths=[len(c.tokens) for c in plan.chunks],
            contexts=[c.end for c in plan.chunks],
            tables=[c.blocks for c in plan.chunks],
            window=self._spec.window,
            every=len(rows) == len(tokens),
        )
        return packed[0], meta, spans

    # --- blocks ---------------------------------------------------------------------------

    def _awake(self) -> KVStore:
        if self.store is None:
            raise EngineError("the engine sleeps: wake it first")
        return self.store

    @torch.inference_mode()
    def transfer(self, copies: Copies) -> None:
        """Begin copies of KV blocks between the device and host memory."""
        assert self.host is not None, "copies without host memory"
        self.host.transfer(self._awake(), copies)

    def finished_copies(self, wait: float = 0.0) -> tuple[list[int], list[int]]:
        """Return the device blocks that were saved, and those that were loaded, since last asked.

        Args:
            wait: seconds to wait for one at most.
        """
        return self.host.finished_copies(wait) if self.host is not None else ([], [])

    def failed_copies(self) -> list[Copies]:
        """Return the copies that failed since last asked."""
        return self.host.failed_copies() if self.host is not None else []

    @torch.inference_mode()
    def read(self, blocks: list[tuple[int, int]]) -> Tensor:
        """Return the contents of (device block, or -1; host block) pairs, in host memory."""
        parts = []
        for block, host in blocks:
            if block >= 0:
                parts.append(self._awake().tensor[block].cpu())
            else:
                assert self.host is not None
                self.host.synchronize()
                parts.append(self._awake().seen(self.host.memory[host]))
        shape = self._awake().tensor.shape[1:]
        return torch.stack(parts) if parts else torch.empty(0, *shape, dtype=self._dtype)

    @torch.inference_mode()
    def write(self, blocks: list[int], data: Tensor) -> None:
        """Write contents, as `read` returns them, to device blocks."""
        store = self._awake()
        for block, content in zip(blocks, data, strict=False):
            store.tensor[block] = content.to(self.device)

    @torch.inference_mode()
    def copy_seconds(self, blocks: int = 8) -> float:
        """Measure the seconds that copying a block to host memory takes."""
        if self.host is None:
            return 0.0
        count = min(blocks, self._blocks, self.host.memory.shape[0])
        pairs = Copies([(n, n) for n in range(count)], [], [])
        times = []
        for _ in range(3):
            began = time.perf_counter()
            self.transfer(pairs)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times) / count

    # --- weights and memory ---------------------------------------------------------------

    @torch.inference_mode()
    def update(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights; raise `ConfigError` if they do not fit."""
        self.model.update(weights)

    def sleep(self) -> None:
        """Free the KV memory; on a GPU, move the weights to host memory."""
        self.store = None
        if self.device.type == "cuda":
            self.model.to(torch.device("cpu"))
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Undo `sleep`; the KV store is empty then."""
        if self.device.type == "cuda":
            self.model.to(self.device)
        self.store = self._new_store()

    def close(self) -> None:
        """Stop copying."""
        if self.host is not None:
            self.host.close()


def pick_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is the first GPU, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: choose cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no GPU here; use --device cpu")
    return device


__all__ = ["ModelRunner", "pick_device"]
