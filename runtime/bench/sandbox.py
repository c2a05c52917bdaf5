"""`drawloom bench sandbox`: tool environments beside plain docker-py on the same engine.

Ours and the other side take turns in one run.
"""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker

from drawloom.environments import Env
from drawloom.ids import new_id
from drawloom.runtime.bench import cold_start_overlap
from drawloom.runtime.bench.table import Row, note, report
from drawloom.runtime.demo.run import docker_engine
from drawloom.runtime.sim.report import quantile
from drawloom.sandbox.api.provider import SNAPSHOT_LABEL
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.docker.provider import DockerProvider
from drawloom.sandbox.pool.warm_pool import WarmPool

_ENV = Env(BOX, memory="64m", pids=64)
_READY = 8
_CLAIMS, _COLD = 100, 10
_EXECS, _SLOW_EXECS = 300, 20
_CROWD, _EACH = 8, 200
_TIMEOUT, _TIMEOUTS = 0.3, 20
_FORKS, _DIFF = 8, 50 << 20
_SHARERS, _IMAGE = 20, 240 << 20
_ROUNDS = 3


def main(json: bool) -> int:
    """Raises `SandboxUnavailable` where no Docker engine answers and none can be started."""
    with docker_engine("docker") as url:
        rows, about = asyncio.run(_rows(url, json))
    report(rows, about, json)
    return 0


async def _rows(url: str | None, json: bool) -> tuple[list[Row], dict[str, Any]]:
    bench = await asyncio.to_thread(Bench, url)
    rows = []
    try:
        async for row in bench.measure():
            rows.append(row)
            if not json:
                note(row)
        return rows, bench.about
    finally:
        await bench.close()


class Bench:
    """Measure one provider on one Docker engine; close removes what it made."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self.provider = DockerProvider(new_id("bench"), url)
        self._client = docker.DockerClient(base_url=url) if url else docker.from_env()
        about = self._client.info()
        self.about = {
            "docker": about["ServerVersion"],
            "storage": about["Driver"],
            "cores": about["NCPU"],
            "kernel": about["KernelVersion"],
            "at": time.strftime("%Y-%m-%d"),
        }
        self._root = str(about["DockerRootDir"])
        self._made: list[Any] = []

    async def close(self) -> None:
        for container in self._made:
            await asyncio.to_thread(container.remove, force=True)
        for box in await self.provider.owned():
            await self.provider.destroy(box.id)
        for snapshot in await self.provider.snapshots():
            await self.provider.discard(snapshot.id)
        await self.provider.close()
        self._client.close()

    async def measure(self) -> AsyncIterator[Row]:
        parts = (self._claims, self._execs, self._timeouts, self._forks, self._idle, self._hidden)
        for part in parts:
            for row in await part():
                yield row

    # --- plain docker-py ------------------------------------------------------------------

    def _plain(self) -> Any:
        """Time a container as `docker run -d IMAGE sleep` makes it."""
        made = self._client.containers.run(
            BOX, ["sleep", "600"], detach=True, network_mode="none", init=True
        )
        self._made.append(made)
        return made

    def _cold(self) -> float:
        began = time.perf_counter()
        self._plain().exec_run(["true"])
        return time.perf_counter() - began

    # --- the parts ------------------------------------------------------------------------

    async def _claims(self) -> list[Row]:
        pool = WarmPool(self.provider, max_warm=_READY)
        pool.target(_ENV, _READY)
        warm = []
        for _ in range(_CLAIMS):
            while pool.counts(_ENV.key) != (_READY, 0):
                await asyncio.sleep(0.01)
            began = time.perf_counter()
            sandbox = (await pool.acquire(_ENV)).sandbox
            await sandbox.exec("true")
            warm.append(1e3 * (time.perf_counter() - began))
            await pool.offer(sandbox)
        created, cold = pool.counters.created, await _repeated(self._cold, _COLD)
        making = 1e3 * pool.counters.cold_seconds / max(1, pool.counters.claims)
        await pool.close()
        assert created >= _CLAIMS
        p50, p99 = statistics.median(warm), quantile(warm, 0.99)
        return [
            Row("warm claim and first command, p50", "ms", p50, 10, "10 ms", -1),
            Row("the same, p99", "ms", p99, 50, "50 ms", -1),
            Row("the same beside a cold one", "ms", p50, 1e3 * cold, "docker-py, cold"),
            Row("making one", "ms", making, 1e3 * cold, "docker-py, cold"),
        ]

    async def _execs(self) -> list[Row]:
        boxes = await asyncio.gather(*(self._box() for _ in range(_CROWD)))
        took = [await _timed_exec(boxes[0]) for _ in range(_EXECS)]
        plain = await asyncio.to_thread(lambda: [self._plain() for _ in range(_CROWD)])
        other = await _repeated(lambda: plain[0].exec_run(["true"]), _SLOW_EXECS)
        began = time.perf_counter()
        await asyncio.gather(*(_many(box, _EACH) for box in boxes))
        rate = _CROWD * _EACH / (time.perf_counter() - began)
        began = time.perf_counter()
        with ThreadPoolExecutor(_CROWD) as threads:
            work = [threads.submit(_slow_many, one, _SLOW_EXECS // 2) for one in plain]
            await asyncio.to_thread(lambda: [one.result() for one in work])
        slow = _CROWD * (_SLOW_EXECS // 2) / (time.perf_counter() - began)
        await self._end(boxes)
        p50 = statistics.median(took)
        return [
            Row("a command, p50", "ms", p50, 15, "15 ms", -1),
            Row("the same, p99", "ms", quantile(took, 0.99), 60, "60 ms", -1),
            Row("the same beside another's", "ms", p50, 1e3 * other, "exec_run"),
            Row("commands over 8 environments", "1/s", rate, 300, "300/s", 1),
            Row("the same beside another's", "1/s", rate, slow, "exec_run"),
        ]

    async def _timeouts(self) -> list[Row]:
        box, over = await self._box(), []
        for _ in range(_TIMEOUTS):
            began = time.perf_counter()
            await box.sh("setsid sleep 60 & sleep 60", timeout=_TIMEOUT)
            over.append(1e3 * (time.perf_counter() - began - _TIMEOUT))
        left = (await box.sh("ps -o args | grep -c '[s]leep 60'")).text.strip()
        await self._end([box])
        return [
            Row("timeout of 0.3 s, overshoot at most", "ms", max(over), 100, "100 ms", -1),
            Row("processes that a timeout leaves", "", float(left), 1, "1", -0.5),
        ]

    async def _forks(self) -> list[Row]:
        box = await self._box()
        await box.sh(f"head -c {_DIFF} /dev/urandom > diff")
        began = time.perf_counter()
        snapshot = await self.provider.snapshot(box.id, new_id("snap"))
        kept = time.perf_counter() - began
        forks = await asyncio.gather(*(self._fork(snapshot.id) for _ in range(_FORKS)))
        took = time.perf_counter() - began
        sums = {(await fork.exec("md5sum", "diff")).text for fork in forks}
        assert len(sums) == 1
        began = time.perf_counter()
        back = await self._fork(snapshot.id)
        restored = time.perf_counter() - began
        await self._end([box, back, *forks])
        await self.provider.discard(snapshot.id)
        return [
            Row("snapshot of 50 MB and 8 forks", "s", took, 2.2, "2.2 s", -1),
            Row("  of these the snapshot", "s", kept, took, "all of it"),
            Row("one fork alone", "s", restored, took, "all of it"),
        ]

    async def _idle(self) -> list[Row]:
        box = await self._box()
        await box.sh(f"head -c {_IMAGE} /dev/urandom > image")
        snapshot = await self.provider.snapshot(box.id, new_id("snap"))
        await self._end([box])
        before = await asyncio.to_thread(_used, self._root)
        forks = await asyncio.gather(*(self._fork(snapshot.id) for _ in range(_SHARERS)))
        disk = max(1, await asyncio.to_thread(_used, self._root) - before)
        filters: dict[str, str | list[str] | bool] = {"label": f"{SNAPSHOT_LABEL}={snapshot.id}"}
        rows = await asyncio.to_thread(lambda: self._client.api.containers(filters=filters))
        assert len(rows) == _SHARERS
        pids = await asyncio.to_thread(
            lambda: [(r["Id"], self._client.api.inspect_container(r["Id"])) for r in rows]
        )
        memory = [_memory(id, about["State"]["Pid"]) for id, about in pids]
        await self._end(forks)
        await self.provider.discard(snapshot.id)
        mebibytes = statistics.fmean(memory) / (1 << 20)
        each, copies = disk / _SHARERS / 1e6, _IMAGE * _SHARERS / 1e6
        return [
            Row("an idle environment, memory", "MiB", mebibytes, 12, "12 MiB", -1),
            Row("an idle environment, disk", "MB", each, 1, "1 MB", -1),
            Row("copies of 240 MiB beside them", "MB", copies / _SHARERS, each, "one of 20", 20),
        ]

    async def _hidden(self) -> list[Row]:
        return await cold_start_overlap.rows(self._url, _ROUNDS)

    async def _box(self) -> LiveSandbox:
        return await self.provider.create(_ENV, new_id("box"))

    async def _fork(self, snapshot: str) -> LiveSandbox:
        return await self.provider.fork(_ENV, snapshot, new_id("box"))

    async def _end(self, boxes: list[LiveSandbox]) -> None:
        await asyncio.gather(*(box.destroy() for box in boxes))


async def _timed_exec(box: LiveSandbox) -> float:
    began = time.perf_counter()
    await box.exec("true")
    return 1e3 * (time.perf_counter() - began)


async def _many(box: LiveSandbox, count: int) -> None:
    for _ in range(count):
        await box.exec("true")


def _slow_many(container: Any, count: int) -> None:
    for _ in range(count):
        container.exec_run(["true"])


async def _repeated(work: Callable[[], object], count: int) -> float:
    """Return the median seconds of a blocking call."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await asyncio.to_thread(work)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _used(folder: str) -> int:
    """Bytes in use on the file system that a folder is on."""
    os.sync()
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _memory(container: str, pid: int) -> float:
    """Return the bytes of a container's shim, and of all that its cgroup is charged."""
    total = float(_charged(pid))
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if container.encode() in (folder / "cmdline").read_bytes():
                total += _pss(folder)
        except OSError:  # it has ended
            continue
    return total


def _pss(folder: Path) -> int:
    for line in (folder / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0


def _charged(pid: int) -> int:
    """Bytes of a process's memory cgroup; of the process alone where there is none to read."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        names = {"memory": "memory/{}/memory.usage_in_bytes", "": "{}/memory.current"}
        if controllers in names:
            file = Path("/sys/fs/cgroup") / names[controllers].format(path.lstrip("/"))
            if file.exists():
                return int(file.read_text())
    return _pss(Path(f"/proc/{pid}"))


__all__ = ["Bench", "main"]
