"""What a tool environment is: its declaration (`Env`) and the live thing a tool is handed.

Tools declare environments, sandboxes provide them, the runtime joins the two; none of the three
rooms imports another, so what they share stands here.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

from drawloom.errors import ConfigError

_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes in ``"512m"``, ``"1g"``, ``"4096"``. Raises `ConfigError` on anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmg]?)i?b?", text.strip().lower())
    if match is None:
        raise ConfigError(f"{text!r} is not a size: write it like '512m' or '2g'")
    return int(float(match[1]) * _SIZES[match[2]])


@dataclass(frozen=True, slots=True)
class Env:
    """A declared tool environment.

    Args:
        image: the image that tools of this environment run in.
        setup: shell commands run once in a new environment before it counts as ready.
        cpus: CPU cores, as a quota.
        memory: memory limit; swap is never added.
        disk: most bytes that it may have written; beyond that it is ended. Looked at every few
            seconds; no single file grows larger in a container.
        pids: most processes and threads at a time.
        network: False gives a loopback interface and nothing else.
        warm: environments kept ready ahead of demand, whatever the forecast says.
        output_cap: most bytes of one command's output that leave the environment; the middle
            is cut out, the first and last halves stay.
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

    def __post_init__(self) -> None:
        if not self.image:
            raise ConfigError("Env(image=…) is empty: name the image its tools run in")
        if parse_size(self.memory) < 8 << 20:
            raise ConfigError(f"Env(memory={self.memory!r}) is under 8m: no process would start")
        if parse_size(self.disk) < 1 << 20:
            raise ConfigError(f"Env(disk={self.disk!r}) is under 1m: nothing could be written")
        if self.cpus <= 0 or self.pids < 8 or self.output_cap < 64 or self.warm < 0:
            raise ConfigError(f"{self}: cpus > 0, pids >= 8, output_cap >= 64 and warm >= 0")

    @property
    def key(self) -> str:
        """What environments are pooled by: equal keys are interchangeable."""
        fields = {k: v for k, v in asdict(self).items() if k not in ("warm", "output_cap")}
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What one command did. `output` is stdout and stderr, merged in the order written."""

    code: int
    output: bytes
    total_bytes: int
    seconds: float
    timed_out: bool = False

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    @property
    def truncated(self) -> bool:
        return self.total_bytes > len(self.output)


@runtime_checkable
class Sandbox(Protocol):
    """A live, leased environment. Files persist between commands, processes do not survive a
    timeout, and nothing is shared with another program."""

    @property
    def id(self) -> str: ...

    async def exec(
        self, *argv: str, stdin: bytes = b"", timeout: float | None = None
    ) -> ExecResult:
        """Run a command. Raises `SandboxDied` when the environment is gone."""
        ...

    async def sh(self, command: str, *, timeout: float | None = None) -> ExecResult:
        """Run a line of POSIX shell."""
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Write a file, making its folders."""
        ...

    async def read(self, path: str, *, limit: int = 16 << 20) -> bytes:
        """Read a file of at most `limit` bytes."""
        ...


__all__ = ["Env", "ExecResult", "Sandbox", "parse_size"]
