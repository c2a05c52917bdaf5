"""The command line: every verb, in words and in JSON, and what wrong usage gets."""

import json
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from drawloom.runtime.cli.main import main

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
    import asyncio, sys
    print("asleep", file=sys.stderr, flush=True)
    await asyncio.sleep(60)
'''


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Shell:
    """Run commands in this process, in a folder of their own."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd

    def __call__(self, *words: str) -> Done:
        self._monkeypatch.setattr("sys.argv", ["drawloom", *words])
        self._monkeypatch.setattr("sys.path", [*sys.path])
        self._monkeypatch.delitem(sys.modules, "mine", raising=False)
        self._capfd.readouterr()
        code = main()
        return Done(code, *self._capfd.readouterr())


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Shell:
    (tmp_path / "mine.py").write_text(AGENT)
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, monkeypatch, capfd)


def test_what_was_learned_outlives_the_runtime(shell: Shell) -> None:
    assert json.loads(shell("graph", "--json").stdout) == {}
    for _ in range(2):
        done = shell("run", "mine:work", "--x", "1", "--sandbox", "none")
        assert done.returncode == 0, done.stderr
    found = json.loads(shell("graph", "work", "--json").stdout)
    assert found["work"]["programs"] == 2
    assert found["work"]["edges"]
    assert "2 programs" in shell("graph").stdout
    assert "within p95" in shell("graph", "--calibration").stdout
    unknown = shell("graph", "nobody")
    assert unknown.returncode == 2
    assert "nothing was learned of agent 'nobody'" in unknown.stderr


def test_help_names_every_verb(shell: Shell) -> None:
    text = shell("--help").stdout
    for verb in ("demo", "run", "resume", "serve", "ps", "trace", "profile", "doctor", "bench"):
        assert verb in text


def test_run_ps_and_trace_tell_one_story(shell: Shell) -> None:
    work = ("run", "mine:work", "--x", "21", "--words", '["a"]')
    done = shell(*work, "--sandbox", "none", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["result"]["doubled"] == 42
    assert answer["result"]["words"] == ["a"]

    listed = json.loads(shell("ps", "--json").stdout)
    assert [(p["id"], p["status"]) for p in listed] == [(answer["program"], "done")]
    assert answer["program"] in shell("ps").stdout

    traced = json.loads(shell("trace", answer["program"], "--json").stdout)
    assert {b["activity"] for b in traced["bars"]} >= {"prefill", "decode", "tool"}
    assert any(d["kind"] == "Admit" for d in traced["decisions"])
    assert "prefill" in shell("trace", answer["program"]).stdout


def test_a_declared_graph_runs_with_its_state_as_json(shell: Shell) -> None:
    words = ("run", "mine:pipeline", "--state", '{"n": 4}', "--sandbox", "none", "--json")
    done = shell(*words)
    assert json.loads(done.stdout)["result"] == {"n": 5}, done.stderr


def test_a_file_s_path_names_an_agent_too(shell: Shell) -> None:
    done = shell("run", "mine.py:work", "--x=1", "--sandbox", "none")
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
def test_wrong_usage_is_explained(shell: Shell, words: list[str], said: str) -> None:
    done = shell(*words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "mine:work", "--x", "1", "--model", "./nowhere"], "not a folder"),
        (
            ["run", "mine:work", "--x", "1", "--store", "sqlite:////proc/nope/x.db"],
            "cannot be opened",
        ),
    ],
)
def test_what_fails_says_what_to_do(shell: Shell, words: list[str], said: str) -> None:
    done = shell(*words)
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["trace", "resume"])
def test_programs_that_never_ran_are_looked_up_with_ps(shell: Shell, verb: str) -> None:
    assert shell("run", "mine:pipeline", "--state", "{}", "--sandbox", "none").returncode == 0
    done = shell(verb, "prog-none")
    assert done.returncode == 1, done.stderr
    assert "drawloom ps" in done.stderr
    assert "Traceback" not in done.stderr


def _hears_ctrl_c() -> None:
    """A shell that runs the tests in the background has its children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_cancels_and_releases(shell: Shell) -> None:
    words = ["run", "mine:sleepy", "--sandbox", "none", "--store", "sqlite:///c.db"]
    with subprocess.Popen(
        [sys.executable, "-m", "drawloom", *words],
        cwd=shell.folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hears_ctrl_c,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("program prog-")
            assert process.stderr.readline() == "asleep\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "everything was released" in said
    listed = json.loads(shell("ps", "--store", "sqlite:///c.db", "--json").stdout)
    assert [p["status"] for p in listed] == ["cancelled"]


def test_doctor_says_what_falls_back_to_what(shell: Shell) -> None:
    found = {f["what"]: f for f in json.loads(shell("doctor", "--json").stdout)}
    assert found.keys() >= {"gpu", "docker", "disk", "model", "helper"}
    assert found["model"]["ok"]


def test_ps_of_a_place_where_nothing_ran_is_empty(shell: Shell) -> None:
    assert json.loads(shell("ps", "--json").stdout) == []


def test_profile_writes_a_cost_model_that_serve_reads(shell: Shell) -> None:
    done = shell("profile", "--kv-tokens", "3000", "--out", "cost.json", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["cost"] == json.loads((shell.folder / "cost.json").read_text())
    assert found["cost"]["prefill"] > 0
    assert found["cost"]["step"] > 0
    (shell.folder / "wrong.json").write_text('{"prefill": 1, "colour": "red"}')
    refused = shell("serve", "--cost", "wrong.json")
    assert refused.returncode == 2
    assert "profile --out" in refused.stderr


def test_serve_says_where_it_is_and_ends_with_ctrl_c(shell: Shell) -> None:
    words = ["serve", "--port", "0", "--isolate", "--tenant", "lab:weight=2", "--cost", "none.json"]
    assert shell(*words).returncode == 2
    refused = shell("serve", "--tenant", "lab:programs=0")
    assert refused.returncode == 2
    assert "lets nothing run" in refused.stderr
    with subprocess.Popen(
        [sys.executable, "-m", "drawloom", *words[:-2]],
        cwd=shell.folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hears_ctrl_c,
    ) as process:
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


@pytest.mark.slow
def test_the_engine_bench_runs_beside_transformers(shell: Shell) -> None:
    done = shell("bench", "engine", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {r["against"] for r in rows} == {"generate", "generate_batch", "lean loop"}
    assert all(r["ours"] > 0 and r["other"] > 0 for r in rows)
