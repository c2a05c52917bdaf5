"""The model runner: carries out a step plan on a device."""

from typing import Protocol

import torch
from torch import Tensor

from drawloom.engine.batch import Sampled, StepPlan
from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.kv import KVStore
from drawloom.engine.model import Decoder
from drawloom.engine.ops.base import BatchMeta, Ops
from drawloom.engine.sampling import sample
from drawloom.errors import ConfigError


class Runner(Protocol):
    """What the engine core needs of a device: a fake one will do for its tests."""

    def run(self, plan: StepPlan) -> dict[str, Sampled]: ...


class ModelRunner:
    """A model on one device."""

    def __init__(
        self,
        model: ModelConfig,
        weights: dict[str, Tensor],
        config: EngineConfig,
        blocks: int,
        device: torch.device,
    ) -> None:
        dtype = weights["model.norm.weight"].dtype
        self.device, self.block_size = device, config.block_size
        weights = {name: tensor.to(device) for name, tensor in weights.items()}
        self.model = Decoder(model, weights, make_ops(device))
        self.store = KVStore(model, blocks, config.block_size, device, dtype)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> dict[str, Sampled]:
        for source, target, count in plan.copies:
            self.store.copy(source, target, count)
        tokens, meta = self._inputs(plan)
        logits = self.model(tokens, self.store, meta)
        return sample(logits, [c for c in plan.chunks if c.sample])

    def _inputs(self, plan: StepPlan) -> tuple[Tensor, BatchMeta]:
        size = self.block_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        for chunk in plan.chunks:
            tokens += chunk.tokens
            positions += range(chunk.start, chunk.end)
            slots += [
                chunk.blocks[p // size] * size + p % size for p in range(chunk.start, chunk.end)
            ]
            if chunk.sample:
                rows.append(len(tokens) - 1)
        packed = torch.tensor([tokens, positions, slots], dtype=torch.int64).to(self.device)
        meta = BatchMeta(
            packed[1],
            packed[2],
            torch.tensor(rows, dtype=torch.int64).to(self.device),
            [len(c.tokens) for c in plan.chunks],
            [c.end for c in plan.chunks],
            [c.blocks for c in plan.chunks],
        )
        return packed[0], meta


def make_ops(device: torch.device) -> Ops:
    """The operations of a device: CPU views, Triton kernels on CUDA, plain torch elsewhere."""
    if device.type == "cpu":
        from drawloom.engine.ops.cpu import CpuOps

        return CpuOps()
    if device.type == "cuda":
        from drawloom.engine.ops.triton import TritonOps

        return TritonOps()
    from drawloom.engine.ops.reference import ReferenceOps

    return ReferenceOps()


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises `ConfigError` if the device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: choose cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no GPU here; use --device cpu")
    return device


__all__ = ["ModelRunner", "Runner", "make_ops", "pick_device"]
