"""What the scheduler hears. Every event names its program, and its engine or host."""

import math
from dataclasses import dataclass

from drawloom.errors import ConfigError

CLIENT = "client"  # is waited for where an answer over HTTP asked for no tool


@dataclass(frozen=True, slots=True)
class ProgramSubmitted:
    """A program wants to run. `envs` are the environment keys its tools may need, `fresh` those of
    them that each call has one of its own of; `expect_tokens` and `expect_steps` what it says of
    itself: its largest context, its LLM calls in all."""

    program: str
    agent: str
    tenant: str = "default"
    priority: int = 0
    deadline: float | None = None
    envs: tuple[str, ...] = ()
    expect_tokens: int | None = None
    expect_steps: float | None = None
    fresh: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expected:
    """A program's declared graph says how many LLM calls are still to come, by what it knows now
    (a plan was made, a branch was taken)."""

    program: str
    steps: float


@dataclass(frozen=True, slots=True)
class StepReady:
    """An LLM call has its input: `prompt` tokens in all, at most `output` to come."""

    program: str
    conversation: str
    step: str
    state: str
    engine: str
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class StepFinished:
    """An LLM call ended with a context of `context` tokens; `calls` are the tools it asked for, as
    ``tool`` or, where the arguments say more of how long it takes, ``tool:bucket``.

    It was `queued` seconds at its engine, then had `service` seconds there; of these, `computed`
    prompt tokens took `seconds` to prefill. After a `final` one its program has nothing to do
    that is known of.
    """

    program: str
    conversation: str
    step: str
    state: str
    engine: str
    context: int
    calls: tuple[str, ...]
    computed: int = 0
    seconds: float = 0.0
    queued: float = 0.0
    service: float = 0.0
    final: bool = False


@dataclass(frozen=True, slots=True)
class StepFailed:
    """An LLM call ended without an answer: its engine failed, or nobody waits for it any more."""

    program: str
    step: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A step of an engine is over. Of each call that it said a token of: the program, the call, and
    the tokens that its context has now."""

    engine: str
    calls: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Preempted:
    """Block pressure: what runs has outgrown its engine's memory, and a call gave way. It waits
    there until there is room for it again."""

    program: str
    step: str
    engine: str


@dataclass(frozen=True, slots=True)
class ToolNamed:
    """A tool's name was decoded; `env` is the key of the environment it runs in, if any."""

    program: str
    tool: str
    env: str | None


@dataclass(frozen=True, slots=True)
class ToolReady:
    """A tool call can run: its program has its environment. `call` names it for the `host`."""

    program: str
    conversation: str
    call: str
    tool: str
    host: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    program: str
    conversation: str
    tool: str
    env: str | None


@dataclass(frozen=True, slots=True)
class ToolFinished:
    program: str
    conversation: str
    tool: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Forked:
    """A conversation was forked. The child begins with the first `shared` tokens of its parent; by
    default with all of them."""

    program: str
    parent: str
    child: str
    engine: str
    shared: int | None = None


@dataclass(frozen=True, slots=True)
class ConversationEnded:
    """A conversation is over: nobody will continue it."""

    program: str
    conversation: str


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """It returned, failed, was cancelled, or its client is gone. With `keep` somebody may go on
    where it was: its KV stays as long as there is room."""

    program: str
    keep: bool = False


@dataclass(frozen=True, slots=True)
class EngineUp:
    """An engine with room for `kv_tokens` tokens is there, and for `host_tokens` behind it; one
    conversation has at most `longest` (0: the engine says so itself)."""

    engine: str
    kv_tokens: int
    host_tokens: int = 0
    longest: int = 0


@dataclass(frozen=True, slots=True)
class EngineDown:
    """An engine is gone, with all KV on it and behind it. It may come up again."""

    engine: str


@dataclass(frozen=True, slots=True)
class EngineDrain:
    """An engine is about to go: the calls that it has may end, it is given no others. `EngineUp`
    takes it back."""

    engine: str


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Say how busy an engine is: calls that wait and run there, KV tokens that are free, and the
    share of the last prompts' tokens that it found in its cache."""

    engine: str
    queued: int
    running: int
    free_tokens: int
    hit_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class TenantShare:
    """What a tenant may have from now on: service by its `weight` where others wait as well, at
    most `programs` at a time, and none more once those that run were promised `kv_tokens`.
    Raises `ConfigError` for a weight, or a limit, under which nothing would ever run."""

    tenant: str
    weight: float = 1.0
    programs: int | None = None
    kv_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"tenant {self.tenant!r}: a weight is above 0, not {self.weight:g}")
        for name, limit in (("programs", self.programs), ("kv_tokens", self.kv_tokens)):
            if limit is not None and limit < 1:
                raise ConfigError(f"tenant {self.tenant!r}: {name}={limit} lets nothing run")

    @classmethod
    def parse(cls, text: str) -> "TenantShare":
        """From ``NAME:weight=2,programs=8,kv_tokens=100000``. Raises `ConfigError`."""
        name, _, rest = text.partition(":")
        kinds: dict[str, type] = {"weight": float, "programs": int, "kv_tokens": int}
        try:
            pairs = dict(part.split("=") for part in rest.split(",") if part)
            values = {key: kinds[key](value) for key, value in pairs.items()}
        except (KeyError, ValueError):
            raise ConfigError(
                f"tenant {text!r}: write NAME:weight=2,programs=8,kv_tokens=100000, "
                "any of the three"
            ) from None
        if not name:
            raise ConfigError(f"tenant {text!r} has no name")
        return cls(name, **values)


@dataclass(frozen=True, slots=True)
class Tick:
    """The time is what the scheduler asked to be woken at."""


@dataclass(frozen=True, slots=True)
class HostUp:
    """A sandbox host is there. At most `slots` environments fit on it, used or not. If it `parks`,
    it can put one aside while nothing runs in it, and claim it again as it was."""

    host: str
    slots: int
    parks: bool = False


@dataclass(frozen=True, slots=True)
class HostState:
    """What a sandbox host has ready of one environment; `limit` is its pool's size, `cold` the
    seconds that making one took lately, 0 if none was made."""

    host: str
    env: str
    warm: int
    creating: int
    limit: int
    cold: float = 0.0


Event = (
    ProgramSubmitted
    | Expected
    | StepReady
    | StepFinished
    | StepFailed
    | Decoded
    | Preempted
    | ToolNamed
    | ToolReady
    | ToolStarted
    | ToolFinished
    | Forked
    | ConversationEnded
    | ProgramEnded
    | EngineUp
    | EngineDown
    | EngineDrain
    | EngineLoad
    | HostUp
    | HostState
    | TenantShare
    | Tick
)

__all__ = [
    "ConversationEnded",
    "Decoded",
    "EngineDown",
    "EngineDrain",
    "EngineLoad",
    "EngineUp",
    "Event",
    "Expected",
    "Forked",
    "HostState",
    "HostUp",
    "Preempted",
    "ProgramEnded",
    "ProgramSubmitted",
    "StepFailed",
    "StepFinished",
    "StepReady",
    "TenantShare",
    "Tick",
    "ToolFinished",
    "ToolNamed",
    "ToolReady",
    "ToolStarted",
]
