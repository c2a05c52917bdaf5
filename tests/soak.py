"""`make soak`: what must not be left behind after a lot has gone wrong.

    python tests/soak.py [--cycles 1000] [--programs 200] [--requests 100000]
                         [--sandbox docker|process]

First 1,000 environments are claimed, used and released, half of them by owners that are killed with
SIGKILL at random moments, and the Docker engine is restarted once under them. Then 200 programs are
started by processes that are killed as well, and resumed by others until all are done. After
`drawloom sandbox gc` there must be no container, image of ours, network, mount, environment folder,
lease or helper process, and this process must have as many open files as before. Last, 100,000
requests go through the server, whose memory must stay flat.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from drawloom.engine.config import EngineConfig
from drawloom.errors import SandboxError
from drawloom.ids import new_id
from drawloom.runtime.demo.agent import solve
from drawloom.runtime.demo.run import docker_engine, make_tasks
from drawloom.runtime.demo.tasks import BOX
from drawloom.runtime.sdk.options import SandboxOptions
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.store.store import Store
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.docker.demo_image import build_box
from drawloom.sandbox.docker.private_daemon import PrivateDaemon, answers
from drawloom.sandbox.pool.orphans import remove_orphans
from drawloom.sandbox.pool.warm_pool import WarmPool

_BATCH = 20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def provider(kind: str, docker: str | None, owner: str = "") -> Provider:
    owner = owner or new_id("store")
    if kind == "process":
        from drawloom.sandbox.local.provider import ProcessProvider

        return ProcessProvider(owner)
    from drawloom.sandbox.docker.provider import DockerProvider

    return DockerProvider(owner, docker)


async def cycles(count: int, kind: str, docker: str | None) -> None:
    """Claim, exec, release, eight at a time."""
    made = provider(kind, docker)
    pool = WarmPool(made, max_warm=8)
    pool.target(BOX, 8)
    files: list[int] = []

    async def one(index: int) -> None:
        sandbox = (await pool.acquire(BOX)).sandbox
        result = await sandbox.sh(f"echo {index} > f; cat f")
        assert result.text == f"{index}\n"
        await pool.offer(sandbox)

    for start in range(0, count, _BATCH):
        await asyncio.gather(*(one(i) for i in range(start, min(count, start + _BATCH))))
        files.append(open_files())
        if start % 100 == 0:
            print(f"  {start + _BATCH} cycles, {files[-1]} open files", flush=True)
    left = await made.owned()
    await pool.close()
    assert len(left) <= 8, f"{len(left)} environments beside the pool's"
    assert abs(files[-1] - files[0]) <= 5, f"open files went from {files[0]} to {files[-1]}"


async def cycler(owner: str, kind: str, docker: str | None, log: Path) -> None:
    """Claim, use, keep, fork and release until killed; a line in `log` for each that is through."""
    made = provider(kind, docker, owner)
    await remove_orphans(made, ())
    pool = WarmPool(made, max_warm=4)
    pool.target(BOX, 4)
    numbers = itertools.count()

    async def one() -> None:
        for number in numbers:
            with contextlib.suppress(SandboxError):  # the engine may be restarted at any moment
                await through(number)

    async def through(number: int) -> None:
        sandbox = (await pool.acquire(BOX)).sandbox
        try:
            await sandbox.sh(f"echo {number} > f")
            if number % 20 == 0:
                kept = await made.snapshot(sandbox.id, new_id("snap"))
                fork = await made.fork(BOX, kept.id, new_id("box"))
                assert (await fork.sh("cat f")).text == f"{number}\n"
                await fork.destroy()
                await made.discard(kept.id)
        finally:
            await pool.offer(sandbox)
        with log.open("a") as lines:
            lines.write(".\n")

    await asyncio.gather(*(one() for _ in range(4)))


def killed_cycles(
    count: int, kind: str, docker: str | None, folder: Path, daemon: PrivateDaemon | None
) -> int:
    """Owners of one name, each killed after a while, until so many cycles are through. The engine
    is restarted half way, under the one that runs; how many were killed."""
    owner, log, rng, kills = new_id("store"), folder / "cycles", random.Random(7), 0
    log.touch()
    while (through := log.stat().st_size // 2) < count:
        process = _start("--cycler", owner, kind, docker, "--log", str(log))
        time.sleep(rng.uniform(2.0, 5.0))
        if daemon is not None and through >= count // 2:
            print("  the Docker engine is restarted", flush=True)
            daemon.restart()
            daemon = None
        process.kill()
        process.wait()
        kills += 1
    made = provider(kind, docker, owner)

    async def rest() -> None:
        await remove_orphans(made, ())
        assert (await made.owned(), await made.snapshots()) == ([], [])
        await made.close()

    asyncio.run(rest())
    print(f"  {through} cycles, {kills} owners killed", flush=True)
    return kills


def _start(
    role: str, name: str, kind: str, docker: str | None, *more: str
) -> "subprocess.Popen[bytes]":
    words = [sys.executable, __file__, role, name, "--sandbox", kind, *more]
    return subprocess.Popen(words + (["--docker", docker] if docker else []))


def memory() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def requests(count: int) -> None:
    """Small chats from 16 clients, some named, some not, some that leave early."""
    import httpx
    import uvicorn

    from drawloom.engine.config import EngineConfig
    from drawloom.runtime.server.app import Server
    from drawloom.runtime.server.serve import bind

    engine = EngineConfig(kv_tokens=4096, host_tokens=4096)
    async with Runtime(sandbox="none", engine=engine, record=False) as runtime:
        server, listener = Server(runtime, name="tiny"), bind("127.0.0.1", 0)
        web = uvicorn.Server(uvicorn.Config(server.app, log_level="error", lifespan="off"))
        serving = asyncio.create_task(web.serve(sockets=[listener]))
        left = iter(range(count))
        sizes: list[float] = []

        async def client(own: int) -> None:
            base = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=base, timeout=60) as http:
                for index in left:
                    body = {
                        "messages": [{"role": "user", "content": f"{own} {index % 997}"}],
                        "max_tokens": 2,
                        "stream": index % 10 == 0,
                    }
                    if index % 3 == 0:
                        body["program_id"] = f"p{index % 50}"
                    answer = await http.post("/v1/chat/completions", json=body)
                    assert answer.status_code == 200, answer.text
                    if index % 30 == 0:
                        release = {"program_id": f"p{index % 50}"}
                        await http.post("/programs/release", json=release)
                    if index % (count // 20) == 0:
                        sizes.append(memory())
                        print(f"  {index} requests, {sizes[-1]:.0f} MiB", flush=True)

        await asyncio.gather(*(client(own) for own in range(16)))
        web.should_exit = True
        await serving
        await server.close()
        listener.close()
        stats = await runtime.dispatcher.engine.stats()
        assert stats.cache.held_blocks == stats.cache.conversations == 0, stats
    early, late = sizes[len(sizes) // 4], sizes[-1]
    assert late < early * 1.05 + 5, f"memory went from {early:.0f} to {late:.0f} MiB"


async def worker(store: str, kind: str, docker: str | None, seed: int) -> None:
    """Resume what is open, then start what is still missing; killed by its parent meanwhile."""
    tasks = make_tasks(_BATCH, 4, seed)
    runtime = Runtime(
        store=store,
        sandbox=SandboxOptions(provider=kind, docker=docker),
        engine=EngineConfig(device="auto", kv_tokens=3072),
    )
    async with runtime:
        known = await runtime.store.programs(1000)
        runs = []
        for row in known:
            with contextlib.suppress(SandboxError):  # recorded as failed: its environment is gone
                if row.open:
                    runs.append(await runtime.resume(solve, row.id))
        for several in tasks[len(known) :]:
            files = {name: text for t in several for name, text in t.files.items()}
            runs.append(await runtime.start(solve, [t.question for t in several], files))
        await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)
        stats = await runtime.dispatcher.engine.stats()
        assert (stats.cache.held_blocks, stats.cache.leased_blocks, stats.cache.conversations) == (
            0,
            0,
            0,
        )


def killed_batch(
    folder: Path, kind: str, docker: str | None, seed: int
) -> tuple[int, dict[str, int]]:
    """One store: kill its owner at random moments until its programs are done."""
    store = f"sqlite:///{folder}/{seed}.db"
    rng, kills = random.Random(seed), 0
    while True:
        process = _start("--worker", store, kind, docker, "--seed", str(seed))
        patience = rng.uniform(2.5, 5.5) if kills < 3 else 300.0
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert code == 0, f"the worker of {store} failed"
        break
    return kills, asyncio.run(statuses(store))


async def statuses(url: str) -> dict[str, int]:
    store = Store(url)
    counts: dict[str, int] = {}
    for row in await store.programs(1000):
        counts[row.status] = counts.get(row.status, 0) + 1
        if row.status != "done":
            print(f"  {row.id} {row.status}: {row.error}", flush=True)
            model = ("ContextTooLong", "BudgetExceeded")  # it lost its way; nothing else may fail
            assert (row.error or "").startswith(model), row.error
    assert await store.leases() == [], "a lease was left in the store"
    await store.close()
    return counts


def gc(store: str, docker: str | None) -> None:
    words = [sys.executable, "-m", "drawloom", "sandbox", "gc", "--store", store]
    subprocess.run(words + (["--docker", docker] if docker else []), check=True)


def left_behind(docker: str | None) -> list[object]:
    words = [sys.executable, "-m", "drawloom", "sandbox", "ls", "--json"]
    words += ["--docker", docker] if docker else []
    found: list[object] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    helpers = subprocess.run(["pgrep", "-f", "drawloom/helper-"], capture_output=True, text=True)
    return found + helpers.stdout.split() + _of_the_engine(docker)


def _of_the_engine(url: str | None) -> list[str]:
    """Containers, images, networks and mounts of a Docker engine, whoever made them."""
    if not answers(url):
        return []
    import docker

    client = docker.DockerClient(base_url=url) if url else docker.from_env()
    found = [f"container {c['Id'][:12]}" for c in client.api.containers(all=True)]
    found += [f"image {i['Id'][7:19]}" for i in client.api.images()]
    found += [f"network {n['Name']}" for n in client.api.networks()]
    client.close()
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return found + sorted(m for m in mounts if "/overlay2/" in m or "docker/netns" in m)


@contextlib.contextmanager
def engine(kind: str) -> Iterator[tuple[str | None, PrivateDaemon | None]]:
    """A Docker engine, and, where it is ours, the daemon that may be restarted."""
    if kind == "docker" and not answers() and PrivateDaemon.possible():
        daemon = PrivateDaemon()
        with daemon as url:
            build_box(url)
            yield url, daemon
    else:
        with docker_engine(kind) as found:
            yield found, None


def soak(options: argparse.Namespace) -> None:
    with (
        engine(options.sandbox) as (url, daemon),
        tempfile.TemporaryDirectory() as folder,
    ):
        began, before = time.monotonic(), open_files()
        foreign = left_behind(url)
        print(f"{options.cycles} cycles of claim, exec and release on {options.sandbox}")
        half = options.cycles // 2
        asyncio.run(cycles(half, options.sandbox, url))
        owners = killed_cycles(half, options.sandbox, url, Path(folder), daemon)
        total: dict[str, int] = {}
        kills = 0
        print(f"{options.programs} programs, their owners killed at random")
        for seed in range(options.programs // _BATCH):
            killed, counts = killed_batch(Path(folder), options.sandbox, url, seed)
            kills += killed
            for status, count in counts.items():
                total[status] = total.get(status, 0) + count
            print(f"  {sum(total.values())} programs after {kills} kills: {total}", flush=True)
            gc(f"sqlite:///{folder}/{seed}.db", url)
        left, after = [x for x in left_behind(url) if x not in foreign], open_files()
        assert not left, f"left behind: {left}"
        assert abs(after - before) <= 5, f"open files went from {before} to {after}"
        # a model of a million parameters may lose its way once in a hundred; nothing else may fail
        assert total.get("failed", 0) <= options.programs * 0.03, total
        assert sum(total.values()) == total["done"] + total.get("failed", 0) == options.programs
        assert kills >= options.programs // _BATCH, f"only {kills} kills: too slow to hit anything"
        print(
            f"nothing left behind; {time.monotonic() - began:.0f} s, "
            f"{owners} + {kills} kills, {total}"
        )
    if options.requests:
        print(f"{options.requests} requests to the server")
        asyncio.run(requests(options.requests))
        print(f"memory stayed flat; {time.monotonic() - began:.0f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--sandbox", default="docker", choices=["docker", "process"])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cycler", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--docker", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(worker(options.worker, options.sandbox, options.docker, options.seed))
    elif options.cycler:
        asyncio.run(cycler(options.cycler, options.sandbox, options.docker, options.log))
    else:
        soak(options)


if __name__ == "__main__":
    main()
