"""The model in the box and the demo: real model, real tools, held-out tasks."""

import asyncio
import json
import random
from pathlib import Path

import pytest

from drawloom import Chat, Runtime, agent, tool
from drawloom.engine.config import ModelConfig
from drawloom.engine.models.checkpoint import shapes
from drawloom.runtime.demo.agent import solve
from drawloom.runtime.demo.report import save_pictures, summarise
from drawloom.runtime.demo.run import DemoOptions, Outcome, make_tasks, run_demo
from drawloom.runtime.demo.tasks import ADJECTIVES, FAMILIES, NOUNS, SYSTEM, is_held_out, make_task
from drawloom.runtime.dispatch.backends import tiny_model

KEYS = {
    "solved",
    "answers_equal",
    "jct_mean_s",
    "jct_p95_s",
    "ttft_p99_s",
    "prompt_tokens",
    "recomputed_tokens",
    "prefix_hit_tokens",
    "env_claims",
    "env_warm_claims",
    "env_wait_hidden",
    "spent_s",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Outcome]]:
    options = DemoOptions(programs=9, questions=3, rounds=1, kv_tokens=1024, sandbox="process")
    return asyncio.run(run_demo(options, None))


def test_every_program_is_solved_alike_under_both_policies(
    outcomes: dict[str, list[Outcome]],
) -> None:
    summary = summarise(outcomes)
    assert summary["programs"] == 9
    for row in summary["policies"].values():
        assert row["solved"] == 9
        assert row["answers_equal"]
        assert row["env_claims"] == 9


def test_the_baseline_computes_twice_what_drawloom_keeps(
    outcomes: dict[str, list[Outcome]],
) -> None:
    rows = summarise(outcomes)["policies"]
    assert rows["fcfs-lru"]["recomputed_tokens"] > 0
    assert rows["drawloom"]["recomputed_tokens"] <= 0.7 * rows["fcfs-lru"]["recomputed_tokens"]


def test_both_policies_find_the_same_containers(outcomes: dict[str, list[Outcome]]) -> None:
    for row in summarise(outcomes)["policies"].values():
        assert row["env_claims"] == row["env_warm_claims"] == 9


def test_the_time_of_a_program_is_accounted_for(outcomes: dict[str, list[Outcome]]) -> None:
    for (outcome,) in outcomes.values():
        assert sum(outcome.spent.values()) >= 0.999 * outcome.jct_mean
        assert outcome.spent["decode"] > 0 and outcome.spent["tool"] > 0


def test_the_summary_is_one_json_object_with_its_promised_keys(
    outcomes: dict[str, list[Outcome]],
) -> None:
    summary = json.loads(json.dumps(summarise(outcomes)))
    assert summary["policies"].keys() == {"fcfs-lru", "drawloom"}
    for row in summary["policies"].values():
        assert row.keys() >= KEYS


def test_the_pictures_show_every_program(
    outcomes: dict[str, list[Outcome]], tmp_path: Path
) -> None:
    page, image = save_pictures(outcomes, tmp_path)
    text = page.read_text()
    assert text.count("9 solve") == 2
    for words in ("new tokens", "recomputed", "decode", "tool", "KV leased"):
        assert words in text
    assert image.read_bytes().startswith(b"\x89PNG")
    assert image.stat().st_size > 10_000


def test_nothing_is_held_when_all_programs_are_done(outcomes: dict[str, list[Outcome]]) -> None:
    for several in outcomes.values():
        stats = several[0].stats
        assert (stats.cache.held_blocks, stats.cache.leased_blocks, stats.cache.conversations) == (
            0,
            0,
            0,
        )


async def test_with_random_tool_output_it_solves_nothing() -> None:
    rng = random.Random(0)

    @tool
    async def shell(command: str) -> str:
        """Run a shell command."""
        return str(rng.randint(1000, 9999))

    @tool(readonly=True)
    async def add(a: int, b: int) -> int:
        """Add two integers."""
        return rng.randint(1000, 9999)

    @agent(system=SYSTEM, tools=[shell, add], max_tokens=64)
    async def guess(question: str) -> str:
        chat = Chat().user(question)
        for _ in range(4):
            turn = await chat.turn()
            if not turn.calls:
                return turn.text
            await chat.run(turn.calls)
        return ""

    tasks = [make_task(rng, family=f, held_out=True) for f in FAMILIES]
    async with Runtime(sandbox="none") as runtime:
        answers = await asyncio.gather(*(runtime.run(guess, t.question) for t in tasks))
    assert not any(t.is_solved_by(a) for t, a in zip(tasks, answers, strict=True))


def test_held_out_names_are_a_tenth_and_every_task_uses_only_them() -> None:
    names = [f"{a}-{n}" for a in ADJECTIVES for n in NOUNS]
    assert 0.05 < sum(map(is_held_out, names)) / len(names) < 0.15
    for several in make_tasks(9, 2, seed=1):
        for task in several:
            assert all(is_held_out(file.removesuffix(".txt")) for file in task.files)


def test_the_model_in_the_box_is_small_and_whole() -> None:
    folder = tiny_model()
    assert (folder / "model.safetensors").stat().st_size < 4 << 20
    config = ModelConfig.load(folder)
    assert config.family == "qwen3"
    assert shapes(config)["lm_head.weight"][0] == config.vocab_size


def test_the_demo_s_agent_can_be_found_again() -> None:
    assert solve.entry == "drawloom.runtime.demo.agent:solve"
