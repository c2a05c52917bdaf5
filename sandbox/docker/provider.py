"""Environments as Docker containers: hardened, labelled, spoken to through one attached stream.

docker-py makes, finds and removes containers, in threads; commands go through the helper, never
through `docker exec` (62-70 ms each and 15 a second for a whole host, research/sandbox.md §2.2).
A container outlives its owner by `ttl` seconds, so that a killed program finds its files again.
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
    KEPT,
    LABEL,
    WORK,
    Disk,
    Doors,
    OwnedSandbox,
    Snapshot,
    disk_at,
    doors_of,
    set_up,
)
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.docker.private_daemon import answers
from drawloom.sandbox.docker.security_profiles import PROFILES
from drawloom.sandbox.docker.snapshots import DockerSnapshots, labels_of
from drawloom.sandbox.docker.stream import DockerSandbox
from drawloom.sandbox.helper.build import helper_path
from drawloom.sandbox.helper.seccomp import seccomp

T = TypeVar("T")

_HELPER = "/.drawloom/helper"
_SIDECAR_OF = f"{LABEL}-beside"
_DOOR, _SOCKET = "/.drawloom/door", "model"
_CREATES = 4  # the daemon serialises starts: more in flight only wait longer (§2.3)
_ADOPT_SECONDS = 600
_DEEPEST = 64  # overlay2 refuses the 125th layer (§2.4); flattening costs as much as 200 MB do


class DockerProvider:
    """Implements `Provider` over one Docker engine. `owner` labels what it makes. When nobody has
    spoken to a container for `ttl` seconds it ends by itself, once no command runs in it whose
    result an adopter may come for; with `hard` whatever runs."""

    name = "docker"
    keeps_running = True
    doors: Doors | None = None

    def __init__(
        self,
        owner: str,
        url: str | None = None,
        ttl: float = _ADOPT_SECONDS,
        deepest: int = _DEEPEST,
        hard: bool = False,
    ) -> None:
        self._owner, self._ttl, self._hard = owner, ttl, hard
        self._creates = asyncio.Semaphore(_CREATES)
        self._live: dict[str, DockerSandbox] = {}
        self._leaving: set[str] = set()
        self._doors = Path(tempfile.gettempdir()) / f"drawloom-{os.getuid()}-doors" / owner
        if not answers(url):
            raise SandboxUnavailable("no Docker engine answers: start dockerd, or set DOCKER_HOST")
        try:
            options: dict[str, Any] = {"timeout": 60, "max_pool_size": 16}
            self._client = (
                docker.DockerClient(base_url=url, **options) if url else docker.from_env(**options)
            )
            self._kept = DockerSnapshots(self._client, owner, deepest)
            about = self._client.info()
            self.host = str(about["Name"])
            self._root = Path(about["DockerRootDir"])
            # with project quotas, which only an attempt tells, the file system holds Env.disk
            backing = ["Backing Filesystem", "xfs"] in (about.get("DriverStatus") or [])
            self._quotas = about.get("Driver") == "overlay2" and backing
            own = seccomp(str(about["Architecture"]))
            self._security = ["no-new-privileges", *([f"seccomp={own}"] if own else [])]
        except (DockerException, RequestException) as error:
            raise SandboxUnavailable(f"the Docker engine refuses: {error}") from None

    async def create(self, env: Env, id: str) -> LiveSandbox:
        box = await self._with_sidecars(env, id, env.image)
        await set_up(box)
        return box

    async def _with_sidecars(self, env: Env, id: str, image: str) -> LiveSandbox:
        """Make an environment after its sidecars, the first of which has the loopback of all."""
        sidecars: dict[str, LiveSandbox] = {}
        try:
            for name, other in env.sidecars:
                sidecars[name] = await self._make(other, f"{id}.{name}", other.image, pod=(id, env))
                await set_up(sidecars[name])
            box = await self._make(env, id, image)
        except (SandboxError, asyncio.CancelledError):
            if sidecars:
                await asyncio.shield(self.destroy(id))
            raise
        box.sidecars = sidecars
        return box

    async def fork(self, env: Env, snapshot: str, id: str) -> LiveSandbox:
        """Make an environment from a snapshot, with new sidecars."""
        try:
            await self._call(lambda: self._kept.image(snapshot))
            return await self._with_sidecars(env, id, f"{KEPT}:{snapshot}")
        except errors.ImageNotFound:
            raise SandboxDied(f"snapshot {snapshot} is gone, and its files with it") from None

    async def _make(
        self, env: Env, id: str, image: str, pod: tuple[str, Env] | None = None
    ) -> LiveSandbox:
        if (doors := doors_of(self, env)) is not None:
            await doors.open(id, self._door(id) / _SOCKET)
        async with self._creates:
            starting = asyncio.ensure_future(
                self._call(lambda: self._start(env, id, image, pod), env)
            )
            try:
                box = await self._open(env, id, await asyncio.shield(starting))
            except (SandboxError, asyncio.CancelledError):
                # a failure here says nothing about what the daemon did, nor does giving up: the
                # thread that makes the container goes on, so it is waited for, then removed
                await asyncio.shield(self._undo(id, starting))
                raise
        return box

    async def _undo(self, id: str, starting: "asyncio.Future[socket.socket]") -> None:
        with contextlib.suppress(SandboxError):
            (await starting).close()
        await self.destroy(id)

    def _door(self, id: str) -> Path:
        """The folder of an environment's way to the model; it is mounted there, read-only."""
        folder = self._doors / id
        for part in (self._doors.parent, self._doors, folder):
            part.mkdir(mode=0o711, exist_ok=True)
            if part.is_symlink() or part.stat().st_uid != os.getuid():
                raise SandboxError(f"{part} belongs to somebody else")
        return folder

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        if (doors := doors_of(self, env)) is not None:
            await doors.open(id, self._door(id) / _SOCKET)
        try:
            sock = await self._call(lambda: self._attach(self._container(id)), env)
        except SandboxError as error:
            raise SandboxDied(f"environment {id} is gone, and its files with it: {error}") from None
        box = await self._open(env, id, sock)
        for name, other in env.sidecars:
            box.sidecars[name] = await self.adopt(other, f"{id}.{name}")
        return box

    async def _open(self, env: Env, id: str, sock: socket.socket) -> DockerSandbox:
        box = DockerSandbox(id, env, sock, self.destroy)
        try:
            await box._wire.hello()
        except SandboxDied:
            await box.detach()
            raise
        self._live[id] = box
        return box

    def _start(self, env: Env, id: str, image: str, pod: tuple[str, Env] | None) -> socket.socket:
        command = [_HELPER, "--ttl", str(int(self._ttl)), "--dir", WORK]
        command += ["--hard"] if self._hard else []
        memory, disk = parse_size(env.memory), parse_size(env.disk)
        more = PROFILES[env.profile].options(env, WORK)
        volumes = {str(helper_path()): {"bind": _HELPER, "mode": "ro"}}
        if env.llm:
            volumes[str(self._door(id))] = {"bind": _DOOR, "mode": "ro"}
            command += ["--llm", f"{_DOOR}/{_SOCKET}"]
        if env.runtime:
            more["runtime"] = env.runtime
        of, whole = pod or (id, env)
        first = f"{LABEL}-{of}.{whole.sidecars[0][0]}" if whole.sidecars else ""
        if first == f"{LABEL}-{id}":
            more["extra_hosts"] = {name: "127.0.0.1" for name, _ in whole.sidecars}
        container = self._create_container(
            disk,
            image=image,
            entrypoint=command,
            name=f"{LABEL}-{id}",
            labels=labels_of(LABEL if pod is None else _SIDECAR_OF, of, self._owner, env.key),
            volumes=volumes,
            network_mode=(
                "bridge"
                if env.network
                else f"container:{first}"
                if first not in ("", f"{LABEL}-{id}")
                else "none"
            ),
            cap_drop=["ALL"],
            security_opt=self._security,
            mem_limit=memory,
            memswap_limit=memory,
            nano_cpus=int(env.cpus * 1e9),
            pids_limit=env.pids,
            ulimits=[
                docker.types.Ulimit(name="core", soft=0, hard=0),
                docker.types.Ulimit(name="nofile", soft=1024, hard=1024),
                docker.types.Ulimit(name="fsize", soft=disk, hard=disk),
            ],
            log_config=docker.types.LogConfig(type="none"),
            stdin_open=True,
            detach=True,  # otherwise stdin closes with its first owner, and the container ends
            auto_remove=True,
            working_dir="/",
            **more,
        )
        sock = self._attach(container)
        try:
            container.start()
        except BaseException:
            sock.close()
            raise
        return sock

    def _create_container(self, disk: int, **options: Any) -> Any:
        create = self._client.containers.create
        if self._quotas:
            try:
                return create(**options, storage_opt={"size": str(disk)})
            except APIError as error:
                if "storage-opt" not in str(error) and "quota" not in str(error):
                    raise
                self._quotas = False
        return create(**options)

    def _find(self, id: str) -> Any:
        """The container of an environment of this owner. Another's is answered as none."""
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
        return sorted(t for t in names | latest if t != "<none>:<none>" and not t.startswith(KEPT))

    async def disk(self) -> Disk | None:
        return disk_at(self._root)

    async def written(self) -> dict[str, int]:
        filters: dict[str, str | list[str] | bool] = {"label": f"{LABEL}.owner={self._owner}"}
        listed = self._client.api.containers
        rows = await self._call(lambda: listed(filters=filters, size=True))
        sizes: dict[str, int] = {}
        for row in rows:
            id = row["Labels"].get(LABEL) or row["Labels"][_SIDECAR_OF]
            sizes[id] = sizes.get(id, 0) + int(row.get("SizeRw") or 0)
        return sizes

    # --- snapshots ------------------------------------------------------------------------

    async def snapshot(self, id: str, name: str) -> Snapshot:
        """Its container is committed, paused meanwhile; a chain of too many layers is made one."""
        try:
            return await self._call(lambda: self._kept.commit(self._container(id), id, name))
        except SandboxError as error:
            await self.discard(name)
            if "No such container" in str(error) or "its container is" in str(error):
                raise SandboxDied(f"environment {id} is gone, and its files with it") from None
            raise

    async def snapshots(self) -> list[OwnedSandbox]:
        return await self._call(self._kept.all)

    async def discard(self, snapshot: str) -> None:
        """Nothing can be forked from it any more; its layers go with what was."""
        if not await self._call(lambda: self._kept.remove(snapshot)):
            self._leaving.add(snapshot)

    async def _sweep(self) -> None:
        """Try again what was in use."""
        for snapshot in list(self._leaving):
            self._leaving.discard(snapshot)
            await self.discard(snapshot)

    # --- what lives -----------------------------------------------------------------------

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
        if self.doors is not None:
            await self.doors.close(id)
        box = self._live.pop(id, None)
        if box is not None:
            await box.detach()
        await self._end(id)
        if box is None or box.sidecars or box.env.sidecars:
            await self._end_sidecars(id)
        if self._doors.exists():
            await asyncio.to_thread(shutil.rmtree, self._doors / id, ignore_errors=True)
        await self._sweep()

    async def _end_sidecars(self, id: str) -> None:
        ours = [f"{_SIDECAR_OF}={id}", f"{LABEL}.owner={self._owner}"]
        filters: dict[str, str | list[str] | bool] = {"label": ours}
        rows = await self._call(lambda: self._client.api.containers(all=True, filters=filters))
        for row in rows:
            name = row["Names"][0].removeprefix(f"/{LABEL}-")
            if (other := self._live.pop(name, None)) is not None:
                other.lose("it was destroyed with the environment that it is a sidecar of")
                await other.detach()
            await self._end(name)

    async def _end(self, id: str) -> None:
        try:
            await self._call(lambda: self._find(id).remove(v=True, force=True))
        except SandboxError as error:
            if "No such container" not in str(error) and "already in progress" not in str(error):
                raise

    async def close(self) -> None:
        for box in list(self._live.values()):
            await box.detach()
        with contextlib.suppress(OSError):  # it is not there, or adopters will need it
            self._doors.rmdir()
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
