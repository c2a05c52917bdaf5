"""Tool environments: their declaration (`Env`) and the live `Sandbox` that a tool is handed.

Tools declare environments, sandboxes provide them, and the runtime joins the two. None of these
rooms imports another, so the types that they share are here.
"""

import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from drawloom.errors import ConfigError

Command = str | Sequence[str]
"""A command: a string is a line of POSIX shell, a list is a program and its arguments."""
ProfileName = Literal["strict", "swe", "build", "browser"]
_NOT_ITS_FILES = ("warm", "output_cap", "exclude")  # they make no difference between two
_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes in ``"512m"``, ``"1g"``, ``"4096"``. Raises `ConfigError` on anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmg]?)i?b?", text.strip().lower())
    if match is None:
        raise ConfigError(f"{text!r} is not a size: write it like '512m' or '2g'")
    return int(float(match[1]) * _SIZES[match[2]])


@dataclass(frozen=True, slots=True)
class Env:
    """Declare a tool environment.

    Args:
        image: the image that tools of this environment run in.
        setup: shell commands run in a new environment before it counts as ready. Where they take
            long and leave no process running they run once, and others begin with the files.
        cpus: CPU cores, as a quota.
        memory: memory limit; swap is never added.
        disk: most bytes that it may have written; beyond that it is ended. Looked at every few
            seconds; no single file grows larger in a container.
        pids: most processes and threads at a time.
        network: False gives a loopback interface and nothing else.
        warm: environments kept ready ahead of demand, whatever the forecast says.
        output_cap: most bytes of one command's output that leave the environment; the middle
            is cut out, the first and last halves stay.
        profile: what a container may do. `strict`: an ordinary user on a read-only image, files in
            memory; `swe`: root without capabilities on a writable layer; `build`: root that may
            change owners and users, as package managers do; `browser`: as `swe`, with shared
            memory for a browser. `Env.strict(…)`, `Env.swe(…)`, … bring limits as well.
        llm: whether programs in it find the runtime's model at ``OPENAI_BASE_URL``, without a
            network; their calls are calls of the program that has the environment.
        sidecars: further containers, by name, that share its loopback and nothing else: the sites
            that a browser may see. They are found there under their names, and made and destroyed
            with it; `Sandbox.sidecar` runs commands in them. Only in containers.
        exclude: paths that are no part of it: they are removed before its files are kept (put
            aside, forked). Caches and build products.
        runtime: the container runtime, as Docker names it (`runsc` for gVisor); by default its own.
    """

    image: str
    setup: tuple[str, ...] = ()
    cpus: float = 1.0
    memory: str = "512m"
    disk: str = "2g"
    pids: int = 256
    network: bool = False
    warm: int = 0
    output_cap: int = 64 << 10
    profile: ProfileName = "swe"
    runtime: str = ""
    llm: bool = False
    sidecars: tuple[tuple[str, "Env"], ...] = ()
    exclude: tuple[str, ...] = ()

    @classmethod
    def strict(cls, image: str, **options: Any) -> "Env":
        """Declare an environment for untrusted code, with the fewest permissions.

        Its files are in memory, at most half of it, and are lost when its program is paused.
        """
        return cls(image, **_over(options, profile="strict"))

    @classmethod
    def swe(cls, image: str, **options: Any) -> "Env":
        """Declare an environment for a repository and its tests: 2 cores, 4 GiB, no network."""
        return cls(image, **_over(options, profile="swe", memory="4g", cpus=2.0, pids=1024))

    @classmethod
    def build(cls, image: str, **options: Any) -> "Env":
        """Declare one for package managers: as `swe`, with a network and more capabilities."""
        limits = _over(options, memory="4g", cpus=2.0, pids=1024, network=True)
        return cls(image, **_over(limits, profile="build"))

    @classmethod
    def browser(cls, image: str, **options: Any) -> "Env":
        """Declare an environment for Chromium: 2 GiB and shared memory, no network."""
        return cls(image, **_over(options, profile="browser", memory="2g", pids=512))

    def __post_init__(self) -> None:
        if not self.image:
            raise ConfigError("Env(image=…) is empty: name the image its tools run in")
        if parse_size(self.memory) < 8 << 20:
            raise ConfigError(f"Env(memory={self.memory!r}) is under 8m: no process would start")
        if parse_size(self.disk) < 1 << 20:
            raise ConfigError(f"Env(disk={self.disk!r}) is under 1m: nothing could be written")
        if self.profile not in get_args(ProfileName):
            raise ConfigError(
                f"Env(profile={self.profile!r}): choose from {', '.join(get_args(ProfileName))}"
            )
        for name, other in self.sidecars:
            if not re.fullmatch("[a-z][a-z0-9-]{0,30}", name):
                raise ConfigError(f"Env(sidecars=…): {name!r} is no name for a host")
            if other.network or other.llm or other.sidecars:
                raise ConfigError(
                    f"Env(sidecars=…): {name} shares a loopback and has no network, llm or sidecars"
                )
        if any(not path or path.strip("/.") == "" for path in self.exclude):
            raise ConfigError(
                f"Env(exclude={self.exclude}): name paths below the root or its folder"
            )
        if self.sidecars and self.network:
            raise ConfigError("Env(sidecars=…) excludes a network: leave network=True out")
        if self.llm and self.network:
            raise ConfigError("Env(llm=True) is for environments without a network: leave one out")
        if self.cpus <= 0 or self.pids < 8 or self.output_cap < 64 or self.warm < 0:
            raise ConfigError(f"{self}: cpus > 0, pids >= 8, output_cap >= 64 and warm >= 0")

    @property
    def footprint(self) -> int:
        """Return the memory limit of the environment and its sidecars together, in bytes."""
        return parse_size(self.memory) + sum(other.footprint for _, other in self.sidecars)

    @property
    def key(self) -> str:
        """Return the key that environments are pooled by: equal keys are interchangeable."""
        fields = asdict(self, dict_factory=_stored_names)
        fields = {k: v for k, v in fields.items() if k not in _NOT_ITS_FILES}
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stored_names(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return fields by the names that keys are hashed with: stored keys outlive a renaming."""
    return {"beside" if name == "sidecars" else name: value for name, value in fields}


def _over(options: dict[str, Any], **limits: Any) -> dict[str, Any]:
    return limits | options


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Hold the result of a command; `output` is stdout and stderr in the order written."""

    code: int
    output: bytes
    total_bytes: int
    seconds: float
    timed_out: bool = False

    @property
    def text(self) -> str:
        """Return the output as text, with a note where its middle was cut out."""
        return "".join(self.pieces)

    @property
    def pieces(self) -> tuple[str, str, str]:
        """Return the first half, the note and the last half; the last two empty without a cut."""
        if not self.truncated:
            return self.output.decode(errors="replace"), "", ""
        half = len(self.output) // 2
        head, tail = (
            part.decode(errors="replace") for part in (self.output[:half], self.output[half:])
        )
        return head, f"\n… {self.total_bytes - len(self.output)} bytes cut …\n", tail

    @property
    def truncated(self) -> bool:
        return self.total_bytes > len(self.output)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """Describe a background process.

    It runs, or has an exit code. Its output so far lacks the middle beyond the output cap. Times
    are seconds that it has run.
    """

    running: bool
    code: int
    output: bytes
    total_bytes: int
    seconds: float

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")


class Output(Protocol):
    """Stream the output of a running command: ``async for text in …``, then `result`.

    The pieces of text joined are `result.text`. Up to half of the output cap comes at once, the
    rest at the end, because its middle may still be cut out.
    """

    def __aiter__(self) -> AsyncIterator[str]: ...

    @property
    def result(self) -> ExecResult:
        """Raises `SandboxError` before the end."""
        ...


class Service(Protocol):
    """Control a named background process of an environment.

    It outlives the call that started it.
    """

    @property
    def name(self) -> str: ...

    async def state(self) -> ServiceState:
        """Return its state and log; raise `SandboxError` if there is no such process."""
        ...

    async def stop(self) -> ServiceState:
        """Kill it with its group; its last state. Its name is free again."""
        ...


@runtime_checkable
class Sandbox(Protocol):
    """Run commands and move files in a live environment, leased by one program.

    Files persist between commands, processes do not survive a timeout, and nothing is shared with
    another program.

    `exec`, `sh`, `stream` and `start` take a command of any length in the same forms: one string
    is a line of shell, ``"ls *.py | wc -l"``; a list, or several strings, a program and its
    arguments, ``["ls", "-l"]``. In a tool, a command that timed out raises `ToolTimeout` and one
    that could not be run (exit code 126 or 127) `ToolError`, with what it printed; elsewhere
    the result says so.
    """

    @property
    def id(self) -> str: ...

    async def exec(
        self,
        *command: Command,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command. `on_output` is given the first half of the output cap as it comes.
        Raises `SandboxDied` when the environment is gone."""
        ...

    async def sh(self, *command: Command, timeout: float | None = None) -> ExecResult:
        """Run a command, usually a line of POSIX shell: `exec` by a shorter name."""
        ...

    def stream(self, *command: Command, stdin: bytes = b"", timeout: float | None = None) -> Output:
        """Run a command and read what it says meanwhile."""
        ...

    async def start(self, name: str, *command: Command) -> Service:
        """Run a command in the background, until it ends or is stopped.

        Raises:
            SandboxError: a process of that name runs, or the command cannot be started.
        """
        ...

    def service(self, name: str) -> Service:
        """Return a background process that was started before."""
        ...

    def sidecar(self, name: str) -> "Sandbox":
        """Return a sidecar by its name. Raises `SandboxError` if there is none of this name."""
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Write a file, making its folders."""
        ...

    async def read(self, path: str, *, limit: int = 16 << 20) -> bytes:
        """Read a file of at most `limit` bytes."""
        ...

    async def upload(self, local: Path, path: str) -> None:
        """Copy a file or folder of this host to `path`; the image needs `tar`.

        Raises:
            SandboxError: it cannot be copied.
        """
        ...

    async def download(self, path: str, local: Path, *, limit: int = 1 << 30) -> None:
        """Copy a file or folder to `local`, which must not exist; the image needs `tar`.

        Nothing is ever written outside of it: an archive with links or names that lead out,
        devices, or more than `limit` bytes is refused whole.

        Raises:
            SandboxError: it cannot be copied, or is refused.
        """
        ...


__all__ = [
    "Command",
    "Env",
    "ExecResult",
    "Output",
    "Sandbox",
    "Service",
    "ServiceState",
    "parse_size",
]
