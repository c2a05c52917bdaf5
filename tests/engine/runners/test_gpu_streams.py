"""What only happens on a GPU, with its streams, events and graphs pretended: they do at once what
they are told, and note in which order they were told to wait."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.hosting.build import load
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.kv_memory import HostTier, KVStore
from drawloom.engine.runners.gpu_runner import GpuRunner
from drawloom.engine.sequence import SamplingParams

CPU = torch.device("cpu")


class Device:
    """A GPU's queues, as far as the engine knows them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.current = Stream(self, "main")
        self.recording: Graph | None = None
        self.busy: set[str] = set()
        names = iter(["out", "in", *(f"side-{n}" for n in range(1000))])
        for name, value in {
            "Stream": lambda: Stream(self, next(names)),
            "Event": lambda enable_timing=False: Event(self),
            "current_stream": lambda *device: self.current,
            "stream": self.stream,
            "CUDAGraph": lambda: Graph(self),
            "graph": self.capture,
            "graph_pool_handle": object,
            "synchronize": lambda *device: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def capture(
        self, graph: "Graph", pool: object, stream: "Stream", capture_error_mode: str
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local" and stream is not self.current
        self.recording = graph
        yield
        self.recording = None


class Stream:
    def __init__(self, device: Device, name: str) -> None:
        self.device, self.name = device, name

    def wait_stream(self, other: "Stream") -> None:
        self.device.told.append(f"{self.name} waits for {other.name}")


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self) -> None:
        self.name = self.device.current.name
        self.device.told.append(f"event in {self.name}")

    def query(self) -> bool:
        return self.name not in self.device.busy

    def synchronize(self) -> None:
        self.device.busy.discard(self.name)


class Graph:
    """Computes again what was computed while it was recorded, into the same result."""

    def __init__(self, device: Device) -> None:
        self.device, self.replays = device, 0
        self.work: Callable[[], Tensor] | None = None
        self.result: Tensor | None = None

    def replay(self) -> None:
        assert self.work is not None and self.result is not None
        self.replays += 1
        self.result.copy_(self.work())


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def _tier() -> tuple[KVStore, HostTier]:
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
    store = KVStore(spec, 6, 2, CPU, torch.float32, paged=True)
    store.moved.copy_(torch.randn(store.moved.shape))
    tier = HostTier(store, 4)
    tier.close()
    tier._gpu = True
    tier._out, tier._in = torch.cuda.Stream(), torch.cuda.Stream()
    return store, tier


def test_copies_wait_for_the_steps_before_them_and_loads_for_saves(device: Device) -> None:
    store, tier = _tier()
    one, two = store.moved[1].clone(), store.moved[4].clone()
    tier.transfer(store, Copies([(4, 0)], [(1, 2)], []))
    assert device.told == ["out waits for main", "event in out"]
    assert torch.equal(tier.memory[0], two) and torch.equal(tier.memory[2], one)
    store.moved[1:] = 0
    tier.transfer(store, Copies([], [], [(2, 3), (0, 5)]))
    assert device.told[2:] == ["in waits for main", "in waits for out", "event in in"]
    assert torch.equal(store.moved[3], one) and torch.equal(store.moved[5], two)


def test_what_has_arrived_is_told_once_and_in_its_order(device: Device) -> None:
    store, tier = _tier()
    device.busy = {"out", "in"}
    tier.transfer(store, Copies([], [(1, 0), (3, 1)], []))
    tier.transfer(store, Copies([], [], [(0, 2)]))
    assert tier.finished_copies(0.0) == ([], [])
    device.busy = {"in"}
    assert tier.finished_copies(0.0) == ([1, 3], [])
    assert tier.finished_copies(0.0) == ([], [])
    assert tier.finished_copies(1.0) == ([], [2])  # waits for it


class PlainProducts(GpuRunner):
    small_batch = False


class FusedProducts(GpuRunner):
    small_batch = True


def _engine(oracle: Any, device: Device, small_batch: bool) -> tuple[EngineCore, list[Graph]]:
    kind = FusedProducts if small_batch else PlainProducts
    core = load(str(oracle.folder), EngineConfig(kv_tokens=1024, max_sequences=5), runner=kind)
    runner: Any = core._runner
    graphs, forward, made = runner._graphs, runner._graphs._forward, []

    def recorded(packed: Any, small_batch: bool) -> Tensor:
        result: Tensor = forward(packed, small_batch)
        if device.recording is not None:
            graph = device.recording
            graph.work, graph.result = lambda: forward(packed, small_batch), result
            made.append(graph)
        return result

    graphs._forward, graphs._captures = recorded, True
    return core, made


@pytest.mark.parametrize("small_batch", [False, True])
def test_graphs_are_captured_when_first_met_and_disturb_nothing(
    llama: Any, device: Device, small_batch: bool
) -> None:
    """Steps of every mixture, while others are under way: it says what transformers says."""
    core, made = _engine(llama, device, small_batch)
    rng = random.Random(2)
    prompts = {
        f"p{n}": [rng.randrange(3, 259) for _ in range(length)]
        for n, length in enumerate((5, 40, 20, 90, 3, 33))
    }
    said: dict[str, list[int]] = {name: [] for name in prompts}
    for name, prompt in prompts.items():
        params = SamplingParams(max_tokens=8, ignore_eos=True)
        core.submit(GenerateRequest(name, name, tuple(prompt), params))
        for _ in range(2):
            for delta in core.step():
                said[delta.request] += delta.tokens
    while core.busy:
        for delta in core.step():
            assert delta.error is None, delta.error
            said[delta.request] += delta.tokens
    for name, prompt in prompts.items():
        assert len(said[name]) == 8
        llama.follows(prompt, said[name])
    assert 3 <= len(made) <= 10 and sum(graph.replays for graph in made) > len(made)


def test_the_faster_way_is_kept_where_both_can_be_measured(
    llama: Any, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, made = _engine(llama, device, False)
    runner: Any = core._runner
    runner._graphs._small_batch = {}
    times = iter([2.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr("drawloom.engine.runners.cuda_graphs._seconds", lambda graph: next(times))
    with torch.inference_mode():
        runner._graphs.warm_up([runner.packer.plain(1), runner.packer.plain(2)])
    assert runner._graphs._small_batch == {2: True, 1: False}
    assert len(made) == 4
    runner._graphs.forget()
    assert not runner._graphs._graphs
