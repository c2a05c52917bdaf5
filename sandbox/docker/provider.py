"""Environments as Docker containers: restricted, labelled, driven through one attached stream.

docker-py makes, finds and removes containers, in threads; commands go through the helper, never
through `docker exec`, which takes 62-70 ms each and does 15 a second for a whole host. A container
outlives its owner by `ttl` seconds, so that a killed program finds its files again.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from requests.exceptions import RequestException

from drawloom import errors
from drawloom.environments import Env, parse_size
from drawloom.errors import SandboxDied, SandboxError, SandboxUnavailable
from drawloom.sandbox.api.provider import (
    LABEL,
    SNAPSHOT_LABEL,
    Disk,
    Gateway,
    OwnedSandbox,
    Snapshot,
    disk_usage,
    gateway_for,
    set_up,
)
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.docker.container_spec import SIDECAR_LABEL, SOCKET, Host, container_spec
from drawloom.sandbox.docker.private_daemon import answers
from drawloom.sandbox.docker.snapshots import DockerSnapshots
from drawloom.sandbox.docker.stream import DockerSandbox
from drawloom.sandbox.helper.build import helper_path
from drawloom.sandbox.helper.seccomp import seccomp

T = TypeVar("T")

_CREATES = 4  # the daemon serialises starts: more in flight only wait longer
_ADOPT_SECONDS = 600
_MAX_LAYERS = 64  # overlay2 refuses the 125th; flattening costs as much as writing 200 MB


class DockerProvider:
    """Implement `Provider` over one Docker engine.

    Args:
        owner: labels everything that is made; another owner's is never touched.
        url: the engine's address; None: `DOCKER_HOST`, or the usual socket.
        ttl: seconds without a word from the owner after which a container ends by itself, once no
            command runs in it whose result an adopter may come for.
        max_layers: layers of an image from which on a snapshot is flattened.
        hard: end a container after `ttl` even if such a command runs.

    Raises:
        SandboxUnavailable: no engine answers, or it refuses.
    """

    name = "docker"
    keeps_running = True
    gateway: Gateway | None = None

    def __init__(
        self,
        owner: str,
        url: str | None = None,
        ttl: float = _ADOPT_SECONDS,
        max_layers: int = _MAX_LAYERS,
        hard: bool = False,
    ) -> None:
        self._owner, self._ttl, self._hard = owner, ttl, hard
        self._creates = asyncio.Semaphore(_CREATES)
        self._live: dict[str, DockerSandbox] = {}
        self._undiscarded: set[str] = set()
        self._gateways = Path(tempfile.gettempdir()) / f"drawloom-{os.getuid()}-doors" / owner
        if not answers(url):
            raise SandboxUnavailable("no Docker engine answers: start dockerd, or set DOCKER_HOST")
        try:
            options: dict[str, Any] = {"timeout": 60, "max_pool_size": 16}
            self._client = (
                docker.DockerClient(base_url=url, **options) if url else docker.from_env(**options)
            )
            self._snapshots = DockerSnapshots(self._client, owner, max_layers)
            about = self._client.info()
            self.host = str(about["Name"])
            self._root = Path(about["DockerRootDir"])
            # with project quotas, which only an attempt tells, the file system holds Env.disk
            backing = ["Backing Filesystem", "xfs"] in (about.get("DriverStatus") or [])
            self._quotas = about.get("Driver") == "overlay2" and backing
            own = seccomp(str(about["Architecture"]))
            self._security = ("no-new-privileges", *([f"seccomp={own}"] if own else []))
        except (DockerException, RequestException) as error:
            raise SandboxUnavailable(f"the Docker engine refuses: {error}") from None

    async def create(self, env: Env, id: str) -> LiveSandbox:
        sandbox = await self._with_sidecars(env, id, env.image)
        await set_up(sandbox)
        return sandbox

    async def _with_sidecars(self, env: Env, id: str, image: str) -> LiveSandbox:
        """Make an environment after its sidecars, the first of which has the loopback of all."""
        sidecars: dict[str, LiveSandbox] = {}
        try:
            for name, other in env.sidecars:
                sidecars[name] = await self._make(other, f"{id}.{name}", other.image, pod=(id, env))
                await set_up(sidecars[name])
            sandbox = await self._make(env, id, image)
        except (SandboxError, asyncio.CancelledError):
            if sidecars:
                await asyncio.shield(self.destroy(id))
            raise
        sandbox.sidecars = sidecars
        return sandbox

    async def fork(self, env: Env, snapshot: str, id: str) -> LiveSandbox:
        """Make an environment from a snapshot, with new sidecars."""
        try:
            await self._call(lambda: self._snapshots.image(snapshot))
            return await self._with_sidecars(env, id, f"{SNAPSHOT_LABEL}:{snapshot}")
        except errors.ImageNotFound:
            raise SandboxDied(f"snapshot {snapshot} is gone, and its files with it") from None

    async def _make(
        self, env: Env, id: str, image: str, pod: tuple[str, Env] | None = None
    ) -> LiveSandbox:
        if (gateway := gateway_for(self, env)) is not None:
            await gateway.open(id, self._gateway_folder(id) / SOCKET)
        async with self._creates:
            starting = asyncio.ensure_future(
                self._call(lambda: self._start(env, id, image, pod), env)
            )
            try:
                sandbox = await self._open(env, id, await asyncio.shield(starting))
            except (SandboxError, asyncio.CancelledError):
                # a failure here says nothing about what the daemon did, nor does giving up: the
                # thread that makes the container goes on, so it is waited for, then removed
                await asyncio.shield(self._undo(id, starting))
                raise
        return sandbox

    async def _undo(self, id: str, starting: "asyncio.Future[socket.socket]") -> None:
        with contextlib.suppress(SandboxError):
            (await starting).close()
        await self.destroy(id)

    def _gateway_folder(self, id: str) -> Path:
        """Return the folder of an environment's gateway socket; it is mounted read-only."""
        folder = self._gateways / id
        for part in (self._gateways.parent, self._gateways, folder):
            part.mkdir(mode=0o711, exist_ok=True)
            if part.is_symlink() or part.stat().st_uid != os.getuid():
                raise SandboxError(f"{part} belongs to somebody else")
        return folder

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        if (gateway := gateway_for(self, env)) is not None:
            await gateway.open(id, self._gateway_folder(id) / SOCKET)
        try:
            sock = await self._call(lambda: self._attach(self._container(id)), env)
        except SandboxError as error:
            raise SandboxDied(f"environment {id} is gone, and its files with it: {error}") from None
        sandbox = await self._open(env, id, sock)
        for name, other in env.sidecars:
            sandbox.sidecars[name] = await self.adopt(other, f"{id}.{name}")
        return sandbox

    async def _open(self, env: Env, id: str, sock: socket.socket) -> DockerSandbox:
        sandbox = DockerSandbox(id, env, sock, self.destroy)
        try:
            await sandbox._wire.hello()
        except SandboxDied:
            await sandbox.detach()
            raise
        self._live[id] = sandbox
        return sandbox

    def _start(self, env: Env, id: str, image: str, pod: tuple[str, Env] | None) -> socket.socket:
        host = Host(self._owner, helper_path(), self._ttl, self._hard, self._security)
        gateway = self._gateway_folder(id) if env.llm else None
        spec = container_spec(env, id, image, host, gateway=gateway, pod=pod)
        container = self._create_container(spec, parse_size(env.disk))
        sock = self._attach(container)
        try:
            container.start()
        except BaseException:
            sock.close()
            raise
        return sock

    def _create_container(self, spec: dict[str, Any], disk: int) -> Any:
        create = self._client.containers.create
        if self._quotas:
            try:
                return create(**spec, storage_opt={"size": str(disk)})
            except APIError as error:
                if "storage-opt" not in str(error) and "quota" not in str(error):
                    raise
                self._quotas = False
        return create(**spec)

    def _find(self, id: str) -> Any:
        """Return the container of an environment; raise `NotFound` for another owner's."""
        container = self._client.containers.get(f"{LABEL}-{id}")
        if container.labels.get(f"{LABEL}.owner") != self._owner:
            raise NotFound(f"No such container: {id}")
        return container

    def _container(self, id: str) -> Any:
        container = self._find(id)
        if container.status != "running":
            raise NotFound(f"its container is {container.status}")
        return container

    def _attach(self, container: Any) -> socket.socket:
        stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        # the socket under docker-py's response is ours from here: it would never close it
        sock = socket.socket(fileno=getattr(stream, "_sock", stream).detach())
        sock.setblocking(False)
        return sock

    async def images(self) -> list[str] | None:
        found = await self._call(self._client.api.images)
        names = {tag for row in found for tag in row.get("RepoTags") or ()}
        latest = {tag.removesuffix(":latest") for tag in names}
        return sorted(
            t for t in names | latest if t != "<none>:<none>" and not t.startswith(SNAPSHOT_LABEL)
        )

    async def disk(self) -> Disk | None:
        return disk_usage(self._root)

    async def written(self) -> dict[str, int]:
        filters: dict[str, str | list[str] | bool] = {"label": f"{LABEL}.owner={self._owner}"}
        listed = self._client.api.containers
        rows = await self._call(lambda: listed(filters=filters, size=True))
        sizes: dict[str, int] = {}
        for row in rows:
            id = row["Labels"].get(LABEL) or row["Labels"][SIDECAR_LABEL]
            sizes[id] = sizes.get(id, 0) + int(row.get("SizeRw") or 0)
        return sizes

    # --- snapshots ------------------------------------------------------------------------

    async def snapshot(self, id: str, name: str) -> Snapshot:
        """Commit a container, paused meanwhile; flatten a chain of too many layers."""
        try:
            return await self._call(lambda: self._snapshots.commit(self._container(id), id, name))
        except SandboxError as error:
            await self.discard(name)
            if "No such container" in str(error) or "its container is" in str(error):
                raise SandboxDied(f"environment {id} is gone, and its files with it") from None
            raise

    async def snapshots(self) -> list[OwnedSandbox]:
        return await self._call(self._snapshots.all)

    async def discard(self, snapshot: str) -> None:
        """Remove a snapshot's image; its layers go with the last container made of them."""
        if not await self._call(lambda: self._snapshots.remove(snapshot)):
            self._undiscarded.add(snapshot)

    async def _discard_again(self) -> None:
        """Retry to remove the snapshots that containers were using."""
        for snapshot in list(self._undiscarded):
            self._undiscarded.discard(snapshot)
            await self.discard(snapshot)

    # --- containers that exist ------------------------------------------------------------

    async def owned(self) -> list[OwnedSandbox]:
        wanted: dict[str, str | list[str] | bool] = {
            "label": [LABEL, f"{LABEL}.owner={self._owner}"]
        }
        listed = self._client.containers.list  # looks at each again: some may be gone by then
        found = await self._call(lambda: listed(all=True, filters=wanted, ignore_removed=True))
        return [
            OwnedSandbox(
                c.labels[LABEL], c.labels[f"{LABEL}.key"], float(c.labels[f"{LABEL}.created"])
            )
            for c in found
        ]

    async def destroy(self, id: str) -> None:
        if self.gateway is not None:
            await self.gateway.close(id)
        sandbox = self._live.pop(id, None)
        if sandbox is not None:
            await sandbox.detach()
        await self._remove(id)
        if sandbox is None or sandbox.sidecars or sandbox.env.sidecars:
            await self._remove_sidecars(id)
        if self._gateways.exists():
            await asyncio.to_thread(shutil.rmtree, self._gateways / id, ignore_errors=True)
        await self._discard_again()

    async def _remove_sidecars(self, id: str) -> None:
        ours = [f"{SIDECAR_LABEL}={id}", f"{LABEL}.owner={self._owner}"]
        filters: dict[str, str | list[str] | bool] = {"label": ours}
        rows = await self._call(lambda: self._client.api.containers(all=True, filters=filters))
        for row in rows:
            name = row["Names"][0].removeprefix(f"/{LABEL}-")
            if (other := self._live.pop(name, None)) is not None:
                other.lose("it was destroyed with the environment that it is a sidecar of")
                await other.detach()
            await self._remove(name)

    async def _remove(self, id: str) -> None:
        try:
            await self._call(lambda: self._find(id).remove(v=True, force=True))
        except SandboxError as error:
            if "No such container" not in str(error) and "already in progress" not in str(error):
                raise

    async def close(self) -> None:
        for sandbox in list(self._live.values()):
            await sandbox.detach()
        with contextlib.suppress(OSError):  # it is not there, or adopters will need it
            self._gateways.rmdir()
        await asyncio.to_thread(self._client.close)

    async def _call(self, work: Callable[[], T], env: Env | None = None) -> T:
        try:
            return await asyncio.to_thread(work)
        except ImageNotFound:
            image = env.image if env else "?"
            raise errors.ImageNotFound(
                f"image {image!r} is not on this Docker engine: docker pull {image}, or build it"
            ) from None
        except (APIError, DockerException, RequestException, OSError) as error:
            detail = getattr(error, "explanation", None) or error
            raise SandboxError(f"Docker: {detail}") from None


__all__ = ["DockerProvider", "DockerSandbox"]
