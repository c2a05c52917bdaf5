"""The runner of a GPU over its own kernels, in the interpreter: what it says is what transformers
says, with every step padded as for a graph."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.config import EngineConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.core.step_plan import Chunk
from drawloom.engine.hosting.build import load
from drawloom.engine.kernels.cascade import cascade
from drawloom.engine.ops.base import Ops
from drawloom.engine.ops.triton import TritonOps
from drawloom.engine.runners import step_inputs
from drawloom.engine.runners.gpu_runner import GpuRunner
from drawloom.engine.runners.step_inputs import Packed, SlotTable, StepShape, put
from drawloom.engine.sequence import UNSAMPLED, SamplingParams, Sequence
from tests.lanes import slow_unless

Run = Callable[[EngineCore], dict[str, list[int]]]


class Interpreted(GpuRunner):
    """With the kernels instead of their references."""

    small_batch: bool | None = False

    def _make_ops(self, config: EngineConfig) -> Ops:
        return TritonOps()


class SmallBatch(Interpreted):
    small_batch = True


def _prompt(seed: int, length: int) -> list[int]:
    return [random.Random(seed).randrange(3, 259) for _ in range(length)]


def _ask(name: str, tokens: list[int], count: int = 6, **options: Any) -> GenerateRequest:
    params = SamplingParams(max_tokens=count, ignore_eos=True, **options)
    return GenerateRequest(name, name, tuple(tokens), params)


def _engine(oracle: Any, runner: type[GpuRunner], **options: Any) -> EngineCore:
    config = EngineConfig(**{"kv_tokens": 1024, "max_sequences": 5, **options})
    return load(str(oracle.folder), config, runner=runner)


@pytest.mark.parametrize("runner", [Interpreted, SmallBatch])
@pytest.mark.parametrize(
    "family", slow_unless(["llama", "mistral", "qwen2", "qwen3"], quick=["llama"])
)
def test_kernels_say_what_transformers_says(
    family_oracle: Callable[[str], Any], run_core: Run, family: str, runner: type[GpuRunner]
) -> None:
    oracle = family_oracle(family)
    core = _engine(oracle, runner, max_batch_tokens=24)
    prompts = [_prompt(1, 30), _prompt(2, 3), _prompt(3, 17)]
    for index, prompt in enumerate(prompts):
        core.submit(_ask(str(index), prompt))
    said = run_core(core)
    for index, prompt in enumerate(prompts):
        assert len(said[str(index)]) == 6
        oracle.follows(prompt, said[str(index)])


@pytest.mark.parametrize("length", slow_unless([32, 256], quick=[32]))
def test_a_shared_prefix_is_read_once(
    llama: Any, run_core: Run, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """At its true least length of 256 tokens, and at one that the interpreter computes quickly."""
    monkeypatch.setattr(step_inputs, "_MIN_SHARED_TOKENS", length)
    shared: list[list[int]] = []

    def watched(q: Any, keys: Any, values: Any, at: Any, *rest: Any, **more: Any) -> Any:
        shared.append(at.shared_tokens.tolist())
        return cascade(q, keys, values, at, *rest, **more)

    monkeypatch.setattr("drawloom.engine.ops.triton.cascade", watched)
    core = _engine(llama, Interpreted, max_batch_tokens=512)
    prefix = _prompt(4, length)
    core.submit(_ask("first", [*prefix, 7], 1))
    run_core(core)
    prompts = {f"p{n}": [*prefix, *_prompt(n, 3 + n)] for n in range(4)}
    for name, prompt in prompts.items():
        core.submit(_ask(name, prompt, 4))
    said = run_core(core)
    assert shared and all(row == [length] * 4 for row in shared)
    for name, prompt in prompts.items():
        llama.follows(prompt, said[name])


def test_the_runner_copes_with_everything_at_once(llama: Any, run_core: Run) -> None:
    """Forks (copies of a part of a block), sampling of every kind, scores, log-probabilities."""
    outputs = []
    for runner in (GpuRunner, None):
        core = load(str(llama.folder), EngineConfig(kv_tokens=1024, max_sequences=5), runner=runner)
        core.submit(_ask("root", _prompt(5, 21), 3))
        said = run_core(core)
        core.handle(do.Fork("root", "a"))
        core.handle(do.Fork("root", "b"))
        tokens = [*_prompt(5, 21), *said["root"]]
        core.submit(_ask("a", [*tokens, 9, 8], temperature=1.0, top_k=20, seed=3))
        core.submit(
            _ask(
                "b", [*tokens, 7], temperature=0.7, top_p=0.8, seed=4, logprobs=True, top_logprobs=3
            )
        )
        core.submit(_ask("c", _prompt(6, 9), repetition_penalty=1.3, logit_bias=((5, 3.0),)))
        core.submit(_ask("d", _prompt(7, 30), 0, score_from=2))
        core.submit(_ask("e", _prompt(8, 4), temperature=1.5, seed=1))
        found: dict[str, Any] = {}
        while core.busy:
            for delta in core.step():
                assert delta.error is None, delta.error
                one = found.setdefault(delta.request, ([], [], [], []))
                one[0].extend(delta.tokens)
                one[1].extend(delta.logprobs)
                one[2].extend(delta.tops)
                one[3].extend(delta.scores)
        core.cache.check([])
        outputs.append(found)
    mine, other = outputs
    assert mine.keys() == other.keys()
    for name in mine:
        assert mine[name][0] == other[name][0], name
        assert [[t for t, _ in top] for top in mine[name][2]] == [
            [t for t, _ in top] for top in other[name][2]
        ]
        for part in (1, 3):
            torch.testing.assert_close(
                torch.tensor(mine[name][part]),
                torch.tensor(other[name][part]),
                atol=1e-4,
                rtol=1e-4,
            )


def test_an_engine_that_slept_or_was_updated_says_the_same(llama: Any, run_core: Run) -> None:
    core = _engine(llama, GpuRunner, host_tokens=1024)
    prompt = _prompt(9, 40)
    core.submit(_ask("a", prompt))
    for _ in range(4):
        core.step()
    core.handle(do.Sleep())
    core.handle(do.WakeUp())
    first = run_core(core)["a"]
    core.handle(do.UpdateWeights("again", folder=str(llama.folder)))
    core.submit(_ask("b", prompt))
    said = [t for _ in range(40) for d in core.step() for t in d.tokens]
    assert len(said) == 6 and len(first) > 0
    llama.follows(prompt, said)


def test_a_step_that_cannot_be_launched_ends_only_its_own(llama: Any) -> None:
    core = _engine(llama, GpuRunner)
    runner: Any = core._runner
    launch = runner._launch

    def broken(plan: Any) -> Any:
        if any(c.seq.id == "bad" for c in plan.chunks):
            raise RuntimeError("out of memory")
        return launch(plan)

    runner._launch = broken
    core.submit(_ask("good", _prompt(1, 5)))
    core.submit(_ask("bad", _prompt(2, 5)))
    ends = {}
    while core.busy:
        for delta in core.step():
            if delta.finish is not None:
                ends[delta.request] = str(delta.finish)
    assert ends == {"good": "length", "bad": "error"}


# --- packing --------------------------------------------------------------------------------


def _chunk(slot: int, blocks: list[int], start: int, tokens: list[int]) -> Chunk:
    seq = Sequence(f"s{slot}", f"s{slot}", [1] * (start + len(tokens)), SamplingParams())
    seq.slot, seq.blocks = slot, blocks
    return Chunk(seq, tokens, start, blocks, True)


def test_only_what_changed_in_the_tables_is_sent() -> None:
    table = SlotTable(4, 8, 16)
    chunk = _chunk(2, [5, 9], 20, [UNSAMPLED])
    assert table.updates([chunk]) == ([16, 17], [5, 9])
    assert table.updates([chunk]) == ([], [])
    chunk.blocks.append(7)
    assert table.updates([chunk]) == ([18], [7])
    chunk.blocks[1] = 3  # another's block of the same content took its place
    chunk.seq.table_blocks = 1
    assert table.updates([chunk]) == ([17, 18], [3, 7])
    assert table.tables[2, :3].tolist() == [5, 3, 7]


def test_rows_that_begin_alike_are_found_and_cut_into_tiles() -> None:
    table = SlotTable(8, 40, 16)
    common, other = list(range(100, 120)), list(range(200, 218))
    chunks = [_chunk(n, [*common, n], 321, [UNSAMPLED]) for n in range(4)]
    chunks += [_chunk(n + 4, [*other, n + 50], 290, [UNSAMPLED]) for n in range(3)]
    table.updates(chunks)
    order = [0, 4, 1, 5, 2, 6, 3]
    found = table.shared_prefix_groups(order, 3)
    assert found == ([320, 0, 320, 0, 320, 0, 320], [0, 2, 4, 6, -1, -1])
    assert table.shared_prefix_groups([0, 1, 2], 3) is None


def test_fields_do_not_overlap_and_are_aligned() -> None:
    shape = StepShape(7, 5, 2, tiles=3, rows=6, sampled=5, updates=9, shared_rows=4)
    memory = torch.zeros(shape.size, dtype=torch.int32)
    packed = Packed(memory, shape)
    for number, (name, size) in enumerate(shape.fields(), 1):
        assert packed.offsets[name].start % 4 == 0
        assert not packed.ints(name).any()
        put(packed.ints(name), [number] * size, 0)
    for number, (name, size) in enumerate(shape.fields(), 1):
        assert packed.ints(name).tolist() == [number] * size
    assert packed.longs("keys").shape[0] == 5
