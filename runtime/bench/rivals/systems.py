"""Start commands of each system of the comparison, and of its proxy where it has one."""

import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from drawloom.errors import ConfigError
from drawloom.runtime.bench.rivals.install import Installed
from drawloom.runtime.bench.rivals.pausing import TICK
from drawloom.runtime.bench.rivals.servers import Command, StartFailed, running

SYSTEMS = ("vllm", "vllm-pause", "llama.cpp", "openvino", "drawloom", "drawloom-no-ids")
LIBRARY = "openvino"  # no server: engine-only rows, without HTTP
ENGINES = ("vllm", "llama.cpp", LIBRARY, "drawloom")  # of which engine-only rows are measured
_HERE = Path(__file__).parent
_CPU_BLOCK, _GPU_BLOCK = 128, 16  # tokens of one block of vLLM
_MOST_SLOTS = 16  # requests that llama.cpp computes at a time


@dataclass(frozen=True, slots=True)
class Setting:
    """Hold what all servers have in common.

    Args:
        installed: the rivals.
        model: folder of the model.
        kv_tokens: tokens of KV memory.
        threads: threads that compute.
        cores: the cores of the servers; None leaves them all.
        clients: the cores of everything else.
        dtype: what is computed in.
        cuda: there is a GPU.
    """

    installed: Installed
    model: Path
    kv_tokens: int
    threads: int
    cores: frozenset[int] | None
    clients: frozenset[int] | None
    dtype: str = "bfloat16"
    cuda: bool = False

    @property
    def context(self) -> int:
        """Return the tokens of the longest context."""
        about = json.loads((self.model / "config.json").read_text())
        return min(self.kv_tokens, int(about["max_position_embeddings"]))


def known(name: str) -> str:
    """Return a system's name. Raise `ConfigError` for one that there is not."""
    if name.split(":")[0] not in SYSTEMS:
        raise ConfigError(f"system {name!r}: choose of {', '.join(SYSTEMS)}")
    return name


def has_ids(name: str) -> bool:
    """Return whether clients send a program id."""
    return name.split(":")[0] in ("vllm-pause", "drawloom")


@contextlib.asynccontextmanager
async def started(name: str, setting: Setting, peak: int, logs: Path) -> AsyncIterator[str]:
    """Start a system and yield its URL; stop it afterwards.

    Args:
        name: the system; "vllm-pause:1" decides every second.
        setting: what it shares with the others.
        peak: tokens of the largest context that comes, for what has to know it before.
        logs: folder for what servers print.

    Raises:
        StartFailed: it cannot be installed or does not start.
    """
    kind, _, tick = name.partition(":")
    async with contextlib.AsyncExitStack() as stack:
        if kind.startswith("vllm"):
            command = vllm(setting)
        elif kind == "llama.cpp":
            command = llama(setting, peak)
        else:
            command = drawloom(setting)
        url = await stack.enter_async_context(running(command, logs))
        if kind == "vllm-pause":
            proxied = proxy(setting, url, float(tick or TICK))
            url = await stack.enter_async_context(running(proxied, logs))
        yield url


def vllm(setting: Setting) -> Command:
    """Return how vLLM is started: prefix caching is its default."""
    program = setting.installed.vllm()
    cpu = setting.installed.folder in program.parents
    block = _CPU_BLOCK if cpu else _GPU_BLOCK
    env = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if cpu:
        cores = sorted(setting.cores or range(os.cpu_count() or 1))[: setting.threads]
        env |= {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
        # its ahead-of-time cache does not load on CPUs (0.32.0, torch 2.13): it compiled each time
        env |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_USE_AOT_COMPILE": "0"}
    blocks = setting.kv_tokens // block + 1  # one of its blocks holds nothing
    argv = (
        str(program),
        "serve",
        str(setting.model),
        "--served-model-name",
        "m",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--dtype",
        setting.dtype,
        "--num-gpu-blocks-override",
        str(blocks),
        "--block-size",
        str(block),
        "--max-model-len",
        str(setting.context),
        "--enable-prompt-tokens-details",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--disable-uvicorn-access-log",
    )
    return Command("vllm", argv, env, setting.cores)


def proxy(setting: Setting, upstream: str, tick: float) -> Command:
    """Return how the pause/resume proxy is started; it is on the clients' cores."""
    module = "drawloom.runtime.bench.rivals.proxy"
    argv = (
        sys.executable,
        "-m",
        module,
        "--upstream",
        upstream,
        "--port",
        "{port}",
        "--kv-tokens",
        str(setting.kv_tokens),
        "--tick",
        str(tick),
    )
    return Command("pause", argv, {}, setting.clients, wait=60.0)


def llama(setting: Setting, peak: int) -> Command:
    """Return the command of llama.cpp's server.

    All slots share one memory, and there are as many as surely fit.
    """
    model = setting.model / "model.gguf"
    if not model.exists():
        raise StartFailed(f"llama.cpp needs {model}")
    slots = max(1, min(_MOST_SLOTS, setting.kv_tokens // peak))
    argv = (
        str(setting.installed.llama_server()),
        "--model",
        str(model),
        "--alias",
        "m",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--ctx-size",
        str(setting.kv_tokens),
        "--parallel",
        str(slots),
        "--kv-unified",
        "--cache-ram",
        "0",
        "--jinja",
        "--no-webui",
        "--threads",
        str(setting.threads),
        "--threads-batch",
        str(setting.threads),
        "--threads-http",
        "4",
    )
    return Command("llama.cpp", argv, {}, setting.cores)


def openvino(setting: Setting, rows: str, seed: int) -> Command:
    """Return how OpenVINO GenAI measures the engine-only rows; `rows` are their numbers."""
    installed, script = setting.installed, str(_HERE / "genai.py")
    argv = (
        str(installed.openvino()),
        "-P",
        script,
        str(installed.openvino_model(setting.model)),
        str(setting.threads),
        setting.dtype,
        str(setting.kv_tokens),
        str(seed),
        rows,
    )
    return Command(LIBRARY, argv, {}, setting.cores)


def drawloom(setting: Setting) -> Command:
    """Return how our own server is started."""
    argv = (
        sys.executable,
        "-m",
        "drawloom",
        "serve",
        "--model",
        str(setting.model),
        "--name",
        "m",
        "--port",
        "{port}",
        "--dtype",
        setting.dtype,
        "--threads",
        str(setting.threads),
        "--kv-tokens",
        str(setting.kv_tokens),
        "--device",
        "cuda" if setting.cuda else "cpu",
    )
    env = {"OMP_NUM_THREADS": str(setting.threads)}
    return Command("drawloom", argv, env, setting.cores)


__all__ = ["ENGINES", "LIBRARY", "SYSTEMS", "Setting", "has_ids", "known", "started"]
