"""What runtimes and sandbox hosts say to each other over a broker.

    PREFIX/hosts/HOST            retained; `HostStatus`, empty when the host is gone (its last will)
    PREFIX/owners/OWNER          retained; `OwnerStatus`; its last will says that it is offline
    PREFIX/to/HOST/OWNER         a runtime to a host: `Request`s and `Grant`s
    PREFIX/from/HOST/OWNER       a host to a runtime: `Answer`s, pieces of output, `Beat`s

A message is one JSON line, then bytes. Requests name the topic of their answer and a number that
the answer repeats (MQTT 5 response topic and correlation data). Everything may arrive twice or,
when a connection breaks, not at all: a request is sent again until it is answered, and a host
carries out each number once.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from drawloom.environments import Env
from drawloom.errors import ConfigError

Op = Literal[
    "create", "fork", "adopt", "destroy", "owned", "written", "snapshot", "snapshots", "discard",
    "call", "tell",
]  # fmt: skip


Id = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]  # it becomes the name of a folder


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class HostStatus(_Said):
    """A host offers its environments. `images` is what it has, None where that does not matter;
    `lease` the seconds without a word after which it ends its work."""

    name: str
    provider: str
    most: int
    used: int
    images: list[str] | None
    lease: float


class OwnerStatus(_Said):
    online: bool
    epoch: int


class Request(_Said):
    """One thing that a runtime wants of a host.

    `epoch` is the runtime's incarnation: of two, the later one counts. `term` is the lease that the
    environments of this runtime on this host are under: when a host hears a higher one, those of
    the lower are ended first. All numbers below `low` are settled, and those in `settled`.
    """

    kind: Literal["request"] = "request"
    number: int
    epoch: int
    term: int
    low: int
    settled: list[int] = []
    op: Op
    box: Id = ""
    name: Id = ""
    env: Env | None = None
    head: str = ""
    sizes: list[int] = []
    timeout: float | None = None
    stream: bool = False


class Stale(_Said):
    """A later incarnation of this runtime, with this epoch, has been heard: this one counts no
    more."""

    kind: Literal["stale"] = "stale"
    epoch: int


class Grant(_Said):
    """A runtime has heard a beat: the lease goes on from when that was sent."""

    kind: Literal["grant"] = "grant"
    epoch: int
    term: int
    beat: int
    low: int
    settled: list[int] = []


class Beat(_Said):
    kind: Literal["beat"] = "beat"
    number: int


class Bye(_Said):
    """A host has ended all its work and goes."""

    kind: Literal["bye"] = "bye"


class Part(_Said):
    """The next bytes of a running command's output."""

    kind: Literal["part"] = "part"
    index: int


class Answer(_Said):
    """`error` names an error class, `said` are its words; otherwise the values of the op."""

    kind: Literal["answer"] = "answer"
    error: str = ""
    said: str = ""
    reply: str = ""
    numbers: list[int] = []
    rows: list[tuple[str, str, float]] = []


Message = Request | Grant | Stale | Beat | Bye | Part | Answer
_KINDS: dict[str, type[Message]] = {
    "request": Request, "grant": Grant, "stale": Stale, "beat": Beat, "bye": Bye, "part": Part,
    "answer": Answer,
}  # fmt: skip


class Malformed(Exception):
    """A message that nobody of ours wrote."""


def pack(said: _Said, *pieces: bytes) -> bytes:
    line = said.model_dump_json(exclude_defaults=True, exclude={"kind"}).encode()
    kind = getattr(said, "kind", "").encode()
    return b"".join((kind, b" ", line, b"\n", *pieces))


def unpack(data: bytes) -> tuple[Message, bytes]:
    """Raises `Malformed`."""
    line, found, body = data.partition(b"\n")
    kind, _, text = line.partition(b" ")
    model = _KINDS.get(kind.decode(errors="replace"))
    if not found or model is None:
        raise Malformed(repr(line[:80]))
    try:
        return model.model_validate_json(text), body
    except (ValidationError, ConfigError) as error:
        raise Malformed(str(error)) from None


def cut(body: bytes, sizes: list[int]) -> list[bytes]:
    """The pieces that a message's bytes are joined of. Raises `Malformed`."""
    if any(size < 0 for size in sizes) or sum(sizes) != len(body):
        raise Malformed("its pieces are not as long as it says")
    pieces, at = [], 0
    for size in sizes:
        pieces.append(body[at : at + size])
        at += size
    return pieces


__all__ = [
    "Answer", "Beat", "Bye", "Grant", "HostStatus", "Malformed", "Message", "Op", "OwnerStatus",
    "Part", "Request", "Stale", "cut", "pack", "unpack",
]  # fmt: skip
