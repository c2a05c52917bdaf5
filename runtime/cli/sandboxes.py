"""Commands on tool environments: ls, gc, shell, host."""

import asyncio
import contextlib
import functools
import os
import shlex
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from drawloom.environments import parse_size
from drawloom.errors import (
    ConfigError,
    DrawloomError,
    SandboxError,
    SandboxUnavailable,
)
from drawloom.runtime.console import output
from drawloom.runtime.dispatch.env_claim import Owner
from drawloom.runtime.store.store import Store
from drawloom.sandbox.api.provider import LABEL, SNAPSHOT_LABEL, Provider
from drawloom.sandbox.docker.private_daemon import answers
from drawloom.sandbox.pool.orphans import remove_orphans


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Configure a sandbox host.

    Attributes:
        name: its name; by default the machine's.
        sandbox: auto, docker or process.
        most: most environments at a time.
        memory: memory of all environments together, like 16g; empty is unlimited.
        network: let environments have a network.
        lease: seconds without contact after which a runtime's environments are ended.
    """

    name: str = ""
    sandbox: str = "auto"
    most: int = 32
    memory: str = ""
    network: bool = False
    lease: float = 6.0


async def ls(docker: str | None, json: bool) -> int:
    """Print the environments on this host."""
    found = _containers(docker) + _folders()
    if json:
        output.emit(found)
        return 0
    table = Table("environment", "kind", "owner", "age")
    for box in found:
        age = f"{time.time() - box['created']:.0f} s" if box["created"] else ""
        table.add_row(box["id"], box["kind"], box["owner"], age)
    output.console().print(table if found else "no environments")
    return 0


async def gc(url: str, docker: str | None, all: bool, json: bool) -> int:
    """Remove environments; those of programs that can be resumed stay, unless `all`."""
    removed = _remove_all(docker) if all else await _collect(url, docker)
    if json:
        output.emit({"removed": removed})
    else:
        print(f"{len(removed)} environments removed")
    return 0


async def _collect(url: str, docker: str | None) -> list[str]:
    store = Store(url)
    try:
        running = await store.open_programs()
        wanted = {
            lease.sandbox
            for lease in await store.leases()
            if Owner.parse(lease.program).program in running
        }
        removed = []
        for provider in _providers(store.id, docker):
            removed += await remove_orphans(provider, wanted)
            await provider.close()
        for lease in await store.leases():
            if lease.sandbox not in wanted:
                await store.unlease(lease.program)
        return removed
    finally:
        await store.close()


def _providers(owner: str, docker: str | None) -> list[Provider]:
    from drawloom.sandbox.docker.provider import DockerProvider
    from drawloom.sandbox.local.provider import ProcessProvider

    found: list[Provider] = [ProcessProvider(owner)]
    try:
        found.append(DockerProvider(owner, docker))
    except SandboxUnavailable:
        if docker is not None:
            raise
    return found


def _remove_all(docker: str | None) -> list[str]:
    removed = [box["id"] for box in _containers(docker, remove=True)]
    for box in _folders():
        shutil.rmtree(box["path"], ignore_errors=True)
        removed.append(box["id"])
    return removed


def shell(id: str, docker: str | None) -> int:
    """Replace this process by a shell in an environment.

    Raises:
        SandboxError: there is no environment of this id.
    """
    for box in _containers(docker):
        if box["id"] == id and box["kind"] == "docker":
            where = ["-H", docker] if docker else []
            return _become(["docker", *where, "exec", "-it", f"{LABEL}-{id}", "/bin/sh"])
    for box in _folders():
        if box["id"] == id and box["kind"] == "process":
            work = f"{box['path']}/work"
            pid = _inside(work)
            command = ["nsenter", "-t", str(pid), "-U", "-m", "-p", "-n", "-i", "-u"]
            enter = f"cd /work 2>/dev/null || cd {shlex.quote(work)} && exec /bin/sh -i"
            return _become([*command, "--preserve-credentials", "/bin/sh", "-c", enter])
    raise SandboxError(f"there is no environment {id} on this host: see drawloom sandbox ls")


def _become(command: list[str]) -> int:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SandboxError(f"{command[0]} cannot be started: {error.strerror}") from None


def _inside(work: str) -> int:
    """Return the pid of the first process in an environment's namespaces."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if work.encode() in words and b"--isolate" in words:
                children = (folder / "task" / folder.name / "children").read_text().split()
                return int(children[0]) if children else int(folder.name)
    raise SandboxError(f"no process runs in {work}: its owner is gone")


async def host(broker: str, docker: str | None, options: HostOptions) -> int:
    """Offer environments until a signal arrives; then end all of them."""
    from drawloom.sandbox.remote.broker import Broker
    from drawloom.sandbox.remote.host_agent import SandboxHost
    from drawloom.sandbox.remote.lease import helper_ttl

    ttl = helper_ttl(options.lease)
    kind, open_one = _offered(options.sandbox, docker, ttl)
    probe = await open_one("probe")
    images = await probe.images()
    await probe.close()
    stopped = asyncio.Event()
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_, stopped.set)
    made = SandboxHost(
        Broker.parse(broker),
        options.name or socket.gethostname(),
        open_one,
        kind=kind,
        images=images,
        most=options.most,
        network=options.network,
        lease=options.lease,
        memory=parse_size(options.memory) if options.memory else None,
    )
    async with made:
        print(f"sandbox host {made.id} offers {options.most} environments ({kind})", flush=True)
        await stopped.wait()
    return 0


def _offered(
    kind: str, docker: str | None, ttl: float
) -> tuple[str, Callable[[str], Awaitable[Provider]]]:
    from drawloom.sandbox.docker.provider import DockerProvider
    from drawloom.sandbox.local.provider import ProcessProvider

    if kind not in ("auto", "docker", "process"):
        raise ConfigError(f"a host offers auto, docker or process, not {kind!r}")
    if kind == "docker" or (kind == "auto" and answers(docker)):
        make = functools.partial(DockerProvider, url=docker, ttl=ttl, hard=True)
        return "docker", lambda owner: asyncio.to_thread(make, owner)

    async def local(owner: str) -> Provider:
        return ProcessProvider(owner, whole=kind == "auto")

    return "process", local


def _containers(url: str | None, remove: bool = False) -> list[dict[str, Any]]:
    import docker

    if not answers(url):
        if url is not None:
            raise DrawloomError(f"no Docker engine answers at {url}")
        return []
    client = docker.DockerClient(base_url=url) if url else docker.from_env()
    ours: dict[str, str | list[str] | bool] = {"label": f"{LABEL}.owner"}
    containers = client.containers.list(all=True, filters=ours, ignore_removed=True)
    found = [_about(c.labels, LABEL, "docker") for c in containers if LABEL in c.labels]
    for container in containers if remove else []:
        container.remove(force=True, v=True)
    # after the containers, which may run from them
    for image in client.api.images(filters={"label": SNAPSHOT_LABEL}):
        found.append(_about(image["Labels"], SNAPSHOT_LABEL, "docker snapshot"))
        if remove:
            client.api.remove_image(image["Id"], force=True)
    client.close()
    return found


def _about(labels: dict[str, str], name: str, kind: str) -> dict[str, Any]:
    owner, created = labels[f"{LABEL}.owner"], float(labels[f"{LABEL}.created"])
    return {"id": labels[name], "kind": kind, "owner": owner, "created": created}


def _folders() -> list[dict[str, Any]]:
    found = []
    owners = Path(tempfile.gettempdir()).glob("drawloom-[0-9]*/store-*")
    for about in (a for o in owners for p in ("*", "kept/*") for a in o.glob(f"{p}/about.json")):
        folder = about.parent
        kept = folder.parent.name == "kept"
        found.append(
            {
                "id": folder.name,
                "kind": "process snapshot" if kept else "process",
                "owner": folder.parent.parent.name if kept else folder.parent.name,
                "created": about.stat().st_mtime,
                "path": str(folder),
            }
        )
    return found


__all__ = ["HostOptions", "gc", "host", "ls", "shell"]
