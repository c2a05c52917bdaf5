"""Actions that the scheduler decides on; the dispatcher or a simulator carries them out."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admit:
    """Let a new program run."""

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
    """Refuse an LLM call whose prompt is too long for its engine's longest conversation.

    Attributes:
        engine: of the call.
        program: whose call it is.
        step: its name.
        prompt: its tokens.
        room: tokens of the longest conversation.
    """

    engine: str
    program: str
    step: str
    prompt: int
    room: int


@dataclass(frozen=True, slots=True)
class LeaseKV:
    """Keep a conversation's KV for `ttl` seconds; `value` is the seconds that this saves."""

    engine: str
    program: str
    conversation: str
    ttl: float
    value: float


@dataclass(frozen=True, slots=True)
class ReleaseKV:
    """Release the KV of a finished conversation.

    Attributes:
        engine: that has it.
        program: whose conversation it was.
        conversation: that has ended.
        evict: free its blocks at once, instead of when they are needed.
    """

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
    """Copy a conversation's KV back from host memory before it is needed."""

    engine: str
    program: str
    conversation: str


@dataclass(frozen=True, slots=True)
class MoveKV:
    """Copy a conversation's KV from one engine to another, where its next call will run."""

    engine: str
    target: str
    program: str
    conversation: str


@dataclass(frozen=True, slots=True)
class ScheduleTick:
    """Send a `Tick` at this time, by the scheduler's clock."""

    at: float


@dataclass(frozen=True, slots=True)
class WarmEnv:
    """Keep `count` environments of a key warm."""

    host: str
    env: str
    count: int


@dataclass(frozen=True, slots=True)
class ClaimEnv:
    """Claim an environment for a program, before its tool call is complete."""

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
    """Park a program's environments, to free their slots; its next claim brings them back."""

    host: str
    program: str


@dataclass(frozen=True, slots=True)
class ReleaseEnvs:
    """Release all environments of a program."""

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
    | ScheduleTick
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
    "ScheduleTick",
    "StartStep",
    "StartTool",
    "WarmEnv",
]
