"""The command line: every verb, in words and in JSON, and what wrong usage gets."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

AGENT = '''
from dataclasses import dataclass
from drawloom import Chat, Graph, agent, tool
@tool(readonly=True)
async def double(x: int) -> int:
    """Double a number."""
    return 2 * x
@agent(tools=[double], max_tokens=4)
async def work(x: int, words: list[str] = []) -> dict:
    turn = await Chat().user("hello").turn()
    return {"doubled": await double(x), "words": words, "tokens": len(turn.ids)}
@dataclass
class State:
    n: int = 0
pipeline = Graph("pipeline", State)
@pipeline.node
async def step(s: State) -> None:
    s.n += 1
@agent
async def sleepy() -> None:
    import asyncio
    await asyncio.sleep(60)
'''


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "drawloom", *words],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env=os.environ | {"DRAWLOOM_STORE": "sqlite:///s.db", "COLUMNS": "200"},
    )  # fmt: skip


def test_what_was_learned_outlives_the_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(AGENT)
    assert json.loads(_run(tmp_path, "graph", "--json").stdout) == {}
    for _ in range(2):
        done = _run(tmp_path, "run", "mine:work", "--x", "1", "--sandbox", "none")
        assert done.returncode == 0, done.stderr
    found = json.loads(_run(tmp_path, "graph", "work", "--json").stdout)
    assert found["work"]["programs"] == 2
    assert found["work"]["edges"]
    assert "2 programs" in _run(tmp_path, "graph").stdout
    assert "within p95" in _run(tmp_path, "graph", "--calibration").stdout
    unknown = _run(tmp_path, "graph", "nobody")
    assert unknown.returncode == 2
    assert "nothing was learned of agent 'nobody'" in unknown.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli")
    (made / "mine.py").write_text(AGENT)
    return made


def test_help_names_every_verb(folder: Path) -> None:
    text = _run(folder, "--help").stdout
    for verb in ("demo", "run", "resume", "serve", "ps", "trace", "profile", "doctor", "bench"):
        assert verb in text


def test_run_ps_and_trace_tell_one_story(folder: Path) -> None:
    done = _run(
        folder, "run", "mine:work", "--x", "21", "--words", '["a"]', "--sandbox", "none", "--json"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["result"]["doubled"] == 42
    assert answer["result"]["words"] == ["a"]

    listed = json.loads(_run(folder, "ps", "--json").stdout)
    assert [(p["id"], p["status"]) for p in listed] == [(answer["program"], "done")]
    assert answer["program"] in _run(folder, "ps").stdout

    traced = json.loads(_run(folder, "trace", answer["program"], "--json").stdout)
    assert {b["activity"] for b in traced["bars"]} >= {"prefill", "decode", "tool"}
    assert any(d["kind"] == "Admit" for d in traced["decisions"])
    assert "prefill" in _run(folder, "trace", answer["program"]).stdout


def test_a_declared_graph_runs_with_its_state_as_json(folder: Path) -> None:
    words = ("run", "mine:pipeline", "--state", '{"n": 4}', "--sandbox", "none", "--json")
    done = _run(folder, *words)
    assert json.loads(done.stdout)["result"] == {"n": 5}, done.stderr


def test_a_file_s_path_names_an_agent_too(folder: Path) -> None:
    done = _run(folder, "run", "mine.py:work", "--x=1", "--sandbox", "none")
    assert "'doubled': 2" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "mine"], "module:name"),
        (["run", "nowhere:x"], "cannot be imported"),
        (["run", "mine:nothing"], "no agent 'nothing'"),
        (["run", "mine:work"], "needs --x"),
        (["run", "mine:work", "--y", "1"], "has no '--y'"),
        (["run", "mine:work", "--x", "many"], "--x 'many'"),
        (["run", "mine:work", "--x", "1", "--policy", "magic"], "choose one of"),
        (["run", "mine:work", "--x", "1", "--sandbox", "magic"], "choose auto"),
    ],
)
def test_wrong_usage_is_explained(folder: Path, words: list[str], said: str) -> None:
    done = _run(folder, *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trace", "prog-none"], "drawloom ps"),
        (["resume", "prog-none"], "drawloom ps"),
        (["run", "mine:work", "--x", "1", "--model", "./nowhere"], "not a folder"),
        (
            ["run", "mine:work", "--x", "1", "--store", "sqlite:////proc/nope/x.db"],
            "cannot be opened",
        ),
    ],
)
def test_what_fails_says_what_to_do(folder: Path, words: list[str], said: str) -> None:
    done = _run(folder, *words)
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def _hears_ctrl_c() -> None:
    """A shell that runs the tests in the background has its children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_cancels_and_releases(folder: Path) -> None:
    words = ["run", "mine:sleepy", "--sandbox", "none", "--store", "sqlite:///c.db"]
    with subprocess.Popen(
        [sys.executable, "-m", "drawloom", *words], cwd=folder, stderr=subprocess.PIPE, text=True,
        preexec_fn=_hears_ctrl_c,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("program prog-")
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "everything was released" in said
    listed = json.loads(_run(folder, "ps", "--store", "sqlite:///c.db", "--json").stdout)
    assert [p["status"] for p in listed] == ["cancelled"]


def test_doctor_says_what_falls_back_to_what(folder: Path) -> None:
    found = {f["what"]: f for f in json.loads(_run(folder, "doctor", "--json").stdout)}
    assert found.keys() >= {"gpu", "docker", "disk", "model", "helper"}
    assert found["model"]["ok"]


def test_ps_of_a_place_where_nothing_ran_is_empty(tmp_path: Path) -> None:
    assert json.loads(_run(tmp_path, "ps", "--json").stdout) == []


def test_profile_writes_a_cost_model_that_serve_reads(folder: Path) -> None:
    done = _run(folder, "profile", "--kv-tokens", "3000", "--out", "cost.json", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["cost"] == json.loads((folder / "cost.json").read_text())
    assert found["cost"]["prefill"] > 0
    assert found["cost"]["step"] > 0
    (folder / "wrong.json").write_text('{"prefill": 1, "colour": "red"}')
    refused = _run(folder, "serve", "--cost", "wrong.json")
    assert refused.returncode == 2
    assert "profile --out" in refused.stderr


def test_serve_says_where_it_is_and_ends_with_ctrl_c(folder: Path) -> None:
    words = ["serve", "--port", "0", "--isolate", "--tenant", "lab:weight=2", "--cost", "none.json"]
    assert _run(folder, *words).returncode == 2
    refused = _run(folder, "serve", "--tenant", "lab:programs=0")
    assert refused.returncode == 2
    assert "lets nothing run" in refused.stderr
    with subprocess.Popen(
        [sys.executable, "-m", "drawloom", *words[:-2]], cwd=folder, stderr=subprocess.PIPE,
        text=True, preexec_fn=_hears_ctrl_c,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            line = next(line for line in lines if "tinyagent at http://127.0.0.1:" in line)
            url = line.split(" at ")[1].split()[0]
            with urllib.request.urlopen(f"{url}/models", timeout=30) as answer:
                assert json.load(answer)["data"][0]["id"] == "tinyagent"
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130


def test_the_engine_bench_runs_beside_transformers(folder: Path) -> None:
    done = _run(folder, "bench", "engine", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {r["against"] for r in rows} == {"generate", "generate_batch", "lean loop"}
    assert all(r["ours"] > 0 and r["other"] > 0 for r in rows)
