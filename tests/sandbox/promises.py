"""What docs/security.md promises of environments: each promise with a probe that tries to break it.

python -m tests.sandbox.promises  writes the table of the page; test_promises.py holds both to it.
"""

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.pool.health import hold_quotas

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- promises: written by tests/sandbox/promises.py -->", "<!-- end of promises -->"
ENV = Env(BOX, memory="64m", pids=40, cpus=0.25, disk="8m")


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a probe works with: the provider, one of another owner, and an environment."""

    provider: Provider
    stranger: Provider
    box: LiveSandbox

    async def code(self, command: str) -> int:
        return (await self.box.sh(command, timeout=20)).code

    async def text(self, command: str) -> str:
        return (await self.box.sh(command, timeout=20)).text


@dataclass(frozen=True, slots=True)
class Promise:
    """`probe` says whether it is held; the page says so too, with `notes` by provider."""

    words: str
    probe: Callable[[Attempt], Awaitable[bool]]
    held: bool = True
    notes: Mapping[str, str] = field(default_factory=dict)


def _places() -> list[str]:
    """Folders of the host in which owners keep files."""
    return [p for p in ("/srv", "/opt", "/var/lib", "/tmp") if os.access(p, os.W_OK)]


async def _files(attempt: Attempt) -> bool:
    for place in _places():
        with tempfile.NamedTemporaryFile(dir=place) as file:
            Path(file.name).chmod(0o644)
            if await attempt.code(f"cat {file.name}") == 0:
                return False
    other = await attempt.provider.create(ENV, new_id("box"))
    await other.write("kept-here", b"secret")
    return "kept-here" not in await attempt.text("find / -name kept-here 2>/dev/null")


async def _writes(attempt: Attempt) -> bool:
    name = new_id("written")
    for place in ("/etc", "/usr", "/usr/bin", "/var", "/", "/tmp", "/dev/shm"):
        await attempt.code(f"echo x > {place}/{name}")
        if (Path(place) / name).exists():
            return False
    return True


async def _sockets(attempt: Attempt) -> bool:
    name = f"@{attempt.box.id}"
    with tempfile.TemporaryDirectory(dir=_places()[0]) as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o755)
        for address in (f"{folder}/s", name.replace("@", "\0")):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(address)
            server.listen()
        Path(folder, "s").chmod(0o777)
        return all([await attempt.code(f"./probe connect {a}") for a in (f"{folder}/s", name)])


async def _network(attempt: Attempt) -> bool:
    devices = (await attempt.text("cat /proc/net/dev")).splitlines()
    names = {line.split(":")[0].strip() for line in devices if ":" in line}
    try:
        networked = await attempt.provider.create(Env(BOX, network=True), new_id("box"))
    except SandboxError:
        return names <= {"lo"}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reached = await networked.sh(f"echo | nc -w 1 127.0.0.1 {port}", timeout=10)
    return names <= {"lo"} and reached.code != 0


async def _processes(attempt: Attempt) -> bool:
    other = await attempt.provider.create(ENV, new_id("box"))
    marked = await other.start("marked", "sleep", "54321")
    seen = await attempt.text("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; kill -9 -1")
    return "54321" not in seen and "pytest" not in seen and (await marked.state()).running


async def _privileges(attempt: Attempt) -> bool:
    status = (await attempt.text("cat /proc/self/status")).splitlines()
    lines = dict(line.split(":\t") for line in status if ":\t" in line)
    capabilities = {int(lines[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}
    return capabilities == {0} and lines["NoNewPrivs"] == "1"


async def _calls(attempt: Attempt) -> bool:
    said = dict(line.split() for line in (await attempt.text("./probe calls")).splitlines())
    refused = ("socket-38", "socket-40", "socket-17", "clone-newuser", "clone3")
    filtered = "Seccomp:\t2" in await attempt.text("cat /proc/self/status")
    return filtered and all(said[name] != "0" for name in refused)


async def _memory(attempt: Attempt) -> bool:
    kinds = ("private", "shm", "memfd", "sysv")
    said = [await attempt.text(f"./probe {kind} 512") for kind in kinds]
    return not any("held" in text for text in said)


async def _survives(attempt: Attempt) -> bool:
    other = await attempt.box.start("other", "sleep", "60")
    await attempt.text("./probe memfd 512; ./probe shm 512")
    running = (await other.state()).running
    await attempt.box.sh("f() { f | f & }; f & exec sleep 30", timeout=1)
    return running and (await attempt.box.sh("echo alive")).text == "alive\n"


async def _forks(attempt: Attempt) -> bool:
    await attempt.text("for i in $(seq 300); do sleep 5 & done 2>/dev/null")
    return 0 < await attempt.box.ping() <= ENV.pids


async def _cpu(attempt: Attempt) -> bool:
    busy = "timeout 2 sh -c 'while :; do :; done' &"
    used = (await attempt.text(f"{busy} {busy} {busy} wait; times")).splitlines()[-1]
    return sum(float(word.strip("ms")[2:]) for word in used.split()) < 0.9


async def _file(attempt: Attempt) -> bool:
    await attempt.code("head -c 99000000 /dev/zero > large")
    return int(await attempt.text("wc -c < large")) <= 8 << 20


async def _disk(attempt: Attempt) -> bool:
    watch = asyncio.create_task(hold_quotas(attempt.provider, lambda: [attempt.box], every=0.1))
    try:
        await attempt.text("for i in 1 2 3; do head -c 7000000 /dev/zero > $i; done; sleep 10")
    except SandboxDied:
        return True
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    return False


async def _disk_at_once(attempt: Attempt) -> bool:
    await attempt.code("for i in 1 2 3; do head -c 7000000 /dev/zero > $i; done")
    return int(await attempt.text("cat 1 2 3 | wc -c")) <= 8 << 20


async def _timeout(attempt: Attempt) -> bool:
    hide = "(setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 0.1; done' &) ; sleep 60"
    await attempt.box.sh(hide, timeout=0.5)
    return await attempt.box.ping() == 0


async def _forged(attempt: Attempt) -> bool:
    await attempt.text("mkfifo pipe; ln -s /proc/self/fd/1 said; ln -s /dev/stdout out")
    running = asyncio.create_task(
        attempt.box.exec("sh", "-c", "sleep 0.3; echo the truth", key="step")
    )
    await asyncio.sleep(0.1)
    for path in ("pipe", "said", "out"):
        with contextlib.suppress(SandboxError):
            async with asyncio.timeout(5):
                await attempt.box.write(path, b"\n=DL step exit 0 0 4 0 4\nlie\n")
    return (await running).text == "the truth\n"


async def _owners(attempt: Attempt) -> bool:
    kept = await attempt.provider.snapshot(attempt.box.id, new_id("snap"))
    for steal in (
        attempt.stranger.adopt(ENV, attempt.box.id),
        attempt.stranger.fork(ENV, kept.id, new_id("box")),
    ):
        with contextlib.suppress(SandboxError):
            await steal
            return False
    await attempt.stranger.destroy(attempt.box.id)
    await attempt.stranger.discard(kept.id)
    names = [snapshot.id for snapshot in await attempt.provider.snapshots()]
    return kept.id in names and await attempt.code("true") == 0


async def _kernel(attempt: Attempt) -> bool:
    own = Path("/proc/sys/kernel/random/boot_id").read_text()
    return await attempt.text("cat /proc/sys/kernel/random/boot_id") != own


_GIVEN = {"process": "the host's programs and some of `/etc` are given, read-only"}
PROMISES = (
    Promise("files of the host and of other environments cannot be read", _files, notes=_GIVEN),
    Promise("nothing outside of it can be written", _writes),
    Promise("Unix sockets of the host do not answer", _sockets),
    Promise(
        "no network but its own loopback; the host's loopback never",
        _network,
        notes={"docker": "a bridge with `Env(network=True)`", "process": "more is refused"},
    ),
    Promise("processes of others cannot be seen or killed", _processes),
    Promise(
        "no capability, no new privileges", _privileges, notes={"docker": "but profile `build`"}
    ),
    Promise("system calls are those of a list, no namespaces among them", _calls),
    Promise(
        "all its memory together is limited, shared and in files too",
        _memory,
        notes={"process": "without a control group it is looked at every 50 ms"},
    ),
    Promise("what takes too much memory or too many processes ends alone", _survives),
    Promise("processes at a time are limited", _forks),
    Promise("CPU is limited", _cpu, notes={"process": "where there is a control group for it"}),
    Promise("no file is larger than `Env(disk=…)`", _file),
    Promise("what has written more than `Env(disk=…)` is ended", _disk),
    Promise(
        "what it writes in all is held back before that",
        _disk_at_once,
        held=False,
        notes={"docker": "but on xfs with project quotas"},
    ),
    Promise("a command that timed out leaves no process", _timeout),
    Promise("links and pipes neither forge an answer nor hang the helper", _forged),
    Promise("another owner reaches neither it nor its snapshots", _owners),
    Promise(
        "a bug of the kernel is no way out",
        _kernel,
        held=False,
        notes={"docker": 'but with `Env(runtime="runsc")`'},
    ),
)


def table() -> str:
    """The promises as the page shows them."""
    rows = ["| | Docker (`--sandbox docker`) | local processes (`--sandbox process`) |"]
    rows.append("|---|---|---|")
    for promise in PROMISES:
        cells = [promise.words]
        for kind in ("docker", "process"):
            note = promise.notes.get(kind)
            cells.append(
                ("held" if promise.held else "**not held**") + (f"; {note}" if note else "")
            )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([BEGIN, *rows, END])


def on_page() -> str:
    """The table that the page has now."""
    page = PAGE.read_text()
    return page[page.index(BEGIN) : page.index(END) + len(END)]


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().replace(on_page(), table()))
