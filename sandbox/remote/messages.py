"""Messages between runtimes and sandbox hosts over a broker.

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
    "create",
    "fork",
    "adopt",
    "destroy",
    "owned",
    "written",
    "snapshot",
    "snapshots",
    "discard",
    "call",
    "tell",
]


Id = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]  # it becomes the name of a folder


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class HostStatus(_Message):
    """Offer the environments of a host.

    Attributes:
        most, used: environments that it may have, and has.
        images: names of its images; None where they do not matter.
        lease: seconds without a word after which it ends a runtime's environments.
    """

    name: str
    provider: str
    most: int
    used: int
    images: list[str] | None
    lease: float


class OwnerStatus(_Message):
    """Announce that an incarnation of a runtime is online, or no longer."""

    online: bool
    epoch: int


class Request(_Message):
    """Ask a host to do something once.

    Attributes:
        number: identifies the request; it is sent again until it is answered.
        epoch: the runtime's incarnation: of two, the later one counts.
        term: the lease that the environments of this runtime on this host are under; a higher one
            ends those of the lower first.
        low: all smaller numbers are settled: their answers have arrived.
        settled: further numbers that are settled.
        box, name: ids of an environment and of a snapshot.
        head, sizes, timeout, stream: a request to the helper, and the sizes of its payloads.
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


class Stale(_Message):
    """Tell a runtime that a later incarnation of it, with this epoch, has taken over."""

    kind: Literal["stale"] = "stale"
    epoch: int


class Grant(_Message):
    """Renew a runtime's lease on a host, from when the answered beat was sent."""

    kind: Literal["grant"] = "grant"
    epoch: int
    term: int
    beat: int
    low: int
    settled: list[int] = []


class Beat(_Message):
    """Tell a runtime that a host is alive."""

    kind: Literal["beat"] = "beat"
    number: int


class Bye(_Message):
    """Tell a runtime that a host has ended all its work and stops."""

    kind: Literal["bye"] = "bye"


class Part(_Message):
    """Carry the next bytes of a running command's output."""

    kind: Literal["part"] = "part"
    index: int


class Answer(_Message):
    """Answer a request.

    Attributes:
        error, said: name of an error class and its message; empty if it succeeded.
        reply, numbers: the answer of a helper.
        rows: id, key, and a number of each environment or snapshot.
    """

    kind: Literal["answer"] = "answer"
    error: str = ""
    said: str = ""
    reply: str = ""
    numbers: list[int] = []
    rows: list[tuple[str, str, float]] = []


Message = Request | Grant | Stale | Beat | Bye | Part | Answer
_KINDS: dict[str, type[Message]] = {
    "request": Request,
    "grant": Grant,
    "stale": Stale,
    "beat": Beat,
    "bye": Bye,
    "part": Part,
    "answer": Answer,
}


class Malformed(Exception):
    """Report a message that does not follow the protocol."""


def pack(message: _Message, *pieces: bytes) -> bytes:
    """Write a message as one line, followed by bytes."""
    line = message.model_dump_json(exclude_defaults=True, exclude={"kind"}).encode()
    kind = getattr(message, "kind", "").encode()
    return b"".join((kind, b" ", line, b"\n", *pieces))


def unpack(data: bytes) -> tuple[Message, bytes]:
    """Read a message, and the bytes that follow it. Raises `Malformed`."""
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
    """Cut the bytes of a message into pieces of these sizes. Raises `Malformed`."""
    if any(size < 0 for size in sizes) or sum(sizes) != len(body):
        raise Malformed("its pieces are not as long as it says")
    pieces, at = [], 0
    for size in sizes:
        pieces.append(body[at : at + size])
        at += size
    return pieces


__all__ = [
    "Answer",
    "Beat",
    "Bye",
    "Grant",
    "HostStatus",
    "Malformed",
    "Message",
    "Op",
    "OwnerStatus",
    "Part",
    "Request",
    "Stale",
    "cut",
    "pack",
    "unpack",
]
