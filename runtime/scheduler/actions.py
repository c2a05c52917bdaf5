"""What the scheduler decides. Each is carried out by the live loop, or by a simulator."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admit:
    """Let a program run."""

    program: str


@dataclass(frozen=True, slots=True)
class StartStep:
    """Give an LLM call to its engine; lower `priority` goes first."""

    engine: str
    program: str
    step: str
    priority: float


@dataclass(frozen=True, slots=True)
class RefuseStep:
    """An LLM call can never run: its prompt leaves no room in the longest conversation that its
    engine can have."""

    engine: str
    program: str
    step: str
    prompt: int
    room: int


@dataclass(frozen=True, slots=True)
class LeaseKV:
    """Keep a conversation's KV for `ttl` seconds; `value` is the seconds that it saves."""

    engine: str
    program: str
    conversation: str
    ttl: float
    value: float


@dataclass(frozen=True, slots=True)
class ReleaseKV:
    """A conversation is over. `evict` frees its blocks at once instead of when room is needed."""

    engine: str
    program: str
    conversation: str
    evict: bool


@dataclass(frozen=True, slots=True)
class DemoteKV:
    """Copy a conversation's KV to host memory while nobody needs it."""

    engine: str
    program: str
    conversation: str


@dataclass(frozen=True, slots=True)
class PrefetchKV:
    """Bring a conversation's KV back from host memory before it is needed."""

    engine: str
    program: str
    conversation: str


@dataclass(frozen=True, slots=True)
class MoveKV:
    """Bring a conversation's KV from one engine to another; its next call is there."""

    engine: str
    target: str
    program: str
    conversation: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Send a `Tick` at this time, the scheduler's own."""

    at: float


@dataclass(frozen=True, slots=True)
class WarmEnv:
    """Keep `count` environments of a key ready."""

    host: str
    env: str
    count: int


@dataclass(frozen=True, slots=True)
class ClaimEnv:
    """Take an environment for a program now, before its call is complete."""

    host: str
    program: str
    env: str


@dataclass(frozen=True, slots=True)
class StartTool:
    """Give a tool call to its host; lower `priority` goes first."""

    host: str
    program: str
    call: str
    priority: float


@dataclass(frozen=True, slots=True)
class ParkEnvs:
    """Put a program's environments aside, so that others have their room; it will claim them again
    as they were."""

    host: str
    program: str


@dataclass(frozen=True, slots=True)
class ReleaseEnvs:
    """Give back all that a program had."""

    program: str


Action = (
    Admit
    | StartStep
    | RefuseStep
    | LeaseKV
    | ReleaseKV
    | DemoteKV
    | PrefetchKV
    | MoveKV
    | Wake
    | WarmEnv
    | ClaimEnv
    | StartTool
    | ParkEnvs
    | ReleaseEnvs
)

__all__ = [
    "Action",
    "Admit",
    "ClaimEnv",
    "DemoteKV",
    "LeaseKV",
    "MoveKV",
    "ParkEnvs",
    "PrefetchKV",
    "RefuseStep",
    "ReleaseEnvs",
    "ReleaseKV",
    "StartStep",
    "StartTool",
    "Wake",
    "WarmEnv",
]
