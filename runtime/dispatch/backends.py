"""Backends of a runtime: an engine by the name of its model, a sandbox provider by its kind."""

import asyncio
from pathlib import Path

from drawloom.engine.api.engine import Engine
from drawloom.engine.config import EngineConfig
from drawloom.errors import ConfigError, SandboxUnavailable
from drawloom.sandbox.api.provider import Provider

TINY = "tinyagent"


def tiny_model() -> Path:
    """Return the folder of the model that drawloom brings along."""
    return Path(__file__).parents[1] / "tinyagent" / "model"


async def model_folder(model: str) -> Path:
    """Return the folder of a checkpoint, downloading it where needed.

    Args:
        model: a folder, a hub id, or ``tinyagent``.

    Raises:
        CheckpointError: there is no such model, or it cannot be loaded from the hub.
    """
    from drawloom.engine.models.checkpoint import resolve

    return await asyncio.to_thread(resolve, str(tiny_model()) if model == TINY else model)


async def open_engine(folder: Path, config: EngineConfig, isolate: bool) -> Engine:
    """Load a checkpoint into an embedded engine.

    Args:
        folder: of the checkpoint.
        config: options of the engine.
        isolate: run it in a process of its own.

    Raises:
        CheckpointError: the checkpoint cannot be run.
    """
    from drawloom.engine.hosting.process_engine import ProcessEngine
    from drawloom.engine.hosting.thread_engine import ThreadEngine

    host = ProcessEngine if isolate else ThreadEngine
    return await asyncio.to_thread(host.load, str(folder), config)


async def open_provider(kind: str | Provider, owner: str, docker: str | None) -> Provider | None:
    """Open a sandbox provider.

    Args:
        kind: ``docker``, ``process``, ``none``, a broker's URL for hosts behind it, or a provider
            that is open already. ``auto`` is Docker if an engine answers, else local processes,
            which refuse to make an environment where this host cannot isolate it fully.
        owner: the store's id, by which environments are found again.
        docker: the Docker engine's URL; None takes the environment's.

    Raises:
        ConfigError: there is no such kind.
        SandboxUnavailable: Docker or a broker was named and does not answer.
    """
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
