"""Host time of an engine step and of a request to the server, without a model."""

import asyncio
import statistics
import time

from drawloom.engine.api.engine import EngineInfo, GenerateRequest
from drawloom.engine.config import EngineConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.runners.mock_runner import NumberTokenizer, QuickRunner
from drawloom.engine.sequence import SamplingParams


def _core(sequences: int, output: int) -> EngineCore:
    info = EngineInfo("mock", "mock", "cpu", 1 << 16, 1 << 16, 16)
    runner = QuickRunner(lambda seq: 7, 16)
    core = EngineCore(info, KVCache(4096, 16), runner, NumberTokenizer(), max_sequences=sequences)
    for index in range(sequences):
        tokens = tuple(range(100 * index, 100 * index + 64))
        params = SamplingParams(max_tokens=output)
        core.submit(GenerateRequest(f"r{index}", f"r{index}", tokens, params))
    while core.batch.running < sequences:
        core.step()
    return core


def mock_steps(output: int = 20_000) -> float:
    """Return the steps a second of a core with one sequence and no model."""
    core = _core(1, output)
    began, before = time.perf_counter(), core.batch.counters.steps
    while core.busy:
        core.step()
    return (core.batch.counters.steps - before) / (time.perf_counter() - began)


def scheduler_step(sequences: int = 64, steps: int = 400) -> float:
    """Return the median microseconds of planning and booking a decode step."""
    core, times = _core(sequences, steps + 10), []
    core.step()
    core.step()
    for _ in range(steps):
        began = time.perf_counter()
        plan = core.batch.schedule()
        planned = time.perf_counter()
        assert plan is not None
        sampled = core._runner.launch(plan)()
        ran = time.perf_counter()
        core.batch.complete(plan, sampled)
        times.append(time.perf_counter() - ran + planned - began)
    return statistics.median(times) * 1e6


async def server(requests: int = 200) -> dict[str, float]:
    """Return the median milliseconds of a small request to the engine and over HTTP."""
    import json

    import uvicorn

    from drawloom.runtime.sdk.runtime import Runtime
    from drawloom.runtime.server.app import Server
    from drawloom.runtime.server.serve import bind

    engine = EngineConfig(kv_tokens=8192)
    async with Runtime(sandbox="none", engine=engine, record=False) as runtime:
        serving, listener = Server(runtime, name="tiny"), bind("127.0.0.1", 0)
        config = uvicorn.Config(serving.app, log_level="warning", lifespan="off")
        web = uvicorn.Server(config)
        task = asyncio.create_task(web.serve(sockets=[listener]))
        body = json.dumps(
            {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0}
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        message = head.encode() + b"\r\n" + body
        reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        text = runtime.template.render([{"role": "user", "content": "hi"}], [])
        tokens = tuple(runtime.dispatcher.engine.tokenizer.encode(text))
        times: dict[str, list[float]] = {"engine": [], "server": []}
        for index in range(requests):
            began = time.perf_counter()
            request = GenerateRequest(f"b{index}", "bench", tokens, SamplingParams(max_tokens=1))
            async for _ in runtime.dispatcher.engine.generate(request):
                pass
            times["engine"].append(time.perf_counter() - began)
            began = time.perf_counter()
            writer.write(message)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            times["server"].append(time.perf_counter() - began)
        writer.close()
        web.should_exit = True
        await task
        await serving.close()
        listener.close()
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


__all__ = ["mock_steps", "scheduler_step", "server"]
