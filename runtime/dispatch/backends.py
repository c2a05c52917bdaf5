"""What a runtime opens: an engine by the name of its model, a sandbox provider by its kind."""

import asyncio
from pathlib import Path

from drawloom.engine.api.engine import Engine
from drawloom.engine.config import EngineConfig
from drawloom.errors import ConfigError, SandboxUnavailable
from drawloom.sandbox.api.provider import Provider

TINY = "tinyagent"


def tiny_model() -> Path:
    """The folder of the model in the box."""
    return Path(__file__).parents[1] / "tinyagent" / "model"


async def model_folder(model: str) -> Path:
    """Where the checkpoint is: of a folder, a hub id or the model in the box. Raises
    `CheckpointError`."""
    from drawloom.engine.models.checkpoint import resolve

    return await asyncio.to_thread(resolve, str(tiny_model()) if model == TINY else model)


async def open_engine(folder: Path, config: EngineConfig, isolate: bool) -> Engine:
    """The embedded engine for a checkpoint; in a process of its own if `isolate`. Raises
    `CheckpointError`."""
    from drawloom.engine.hosting.process_engine import ProcessEngine
    from drawloom.engine.hosting.thread_engine import ThreadEngine

    host = ProcessEngine if isolate else ThreadEngine
    return await asyncio.to_thread(host.load, str(folder), config)


async def open_provider(kind: str | Provider, owner: str, docker: str | None) -> Provider | None:
    """Docker, local processes or none, by name, or the hosts of a broker by its URL; ``auto`` is
    Docker if an engine answers, else local processes, which then refuse to make an environment
    where this host cannot isolate it fully. Raises `ConfigError` for another name,
    `SandboxUnavailable` where Docker or a broker was named and is not there."""
    if not isinstance(kind, str):
        return kind
    if kind.startswith(("mqtt:", "mqtts:")):
        try:
            from drawloom.sandbox.remote.provider import RemoteProvider
        except ImportError as error:
            raise SandboxUnavailable(f"{error}: pip install 'drawloom[mqtt]'") from None
        return await RemoteProvider.open(owner, kind)
    if kind == "mqtt":
        raise ConfigError("this ran on sandbox hosts behind a broker: give its URL, mqtt[s]://…")
    if kind not in ("auto", "docker", "process", "none"):
        raise ConfigError(f"sandbox {kind!r}: choose auto, docker, process, none or mqtt://broker")
    if kind in ("auto", "docker"):
        from drawloom.sandbox.docker.provider import DockerProvider

        try:
            return await asyncio.to_thread(DockerProvider, owner, docker)
        except SandboxUnavailable:
            if kind == "docker":
                raise
    if kind == "none":
        return None
    from drawloom.sandbox.local.provider import ProcessProvider

    return ProcessProvider(owner, whole=kind == "auto")


__all__ = ["TINY", "model_folder", "open_engine", "open_provider", "tiny_model"]
