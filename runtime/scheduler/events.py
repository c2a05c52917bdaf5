"""Events that the scheduler handles. Each names its program, and its engine or host."""

import math
from dataclasses import dataclass

from drawloom.errors import ConfigError

CLIENT = "client"  # pseudo-tool: an HTTP program answered without a tool call


@dataclass(frozen=True, slots=True)
class ProgramSubmitted:
    """Submit a program.

    Attributes:
        program: its name.
        agent: whose program it is.
        tenant: to whom it belongs.
        priority: higher goes first.
        deadline: time by which it should have ended.
        envs: keys of the environments that its tools may need.
        expect_tokens: its largest context, as it declares.
        expect_steps: its LLM calls in all, as it declares.
        fresh: those of `envs` of which each call has one of its own.
    """

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
    """Declare how many LLM calls of a program are still to come, by what it knows now.

    Sent when a declared graph has made a plan or taken a branch.
    """

    program: str
    steps: float


@dataclass(frozen=True, slots=True)
class StepReady:
    """Announce an LLM call that has its input.

    Attributes:
        program: whose call it is.
        conversation: that it begins or continues.
        step: its name.
        state: its state in the execution graph.
        engine: at which it is to run.
        prompt: tokens of its input.
        output: the most tokens that it may decode.
    """

    program: str
    conversation: str
    step: str
    state: str
    engine: str
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class StepFinished:
    """Report an LLM call that ended with an answer.

    Attributes:
        program: whose call it was.
        conversation: that it continued.
        step: its name.
        state: its state in the execution graph.
        engine: at which it ran.
        context: tokens of the conversation now.
        calls: tools that it asked for, as ``tool`` or, where the arguments say more of how long it
            takes, ``tool:bucket``.
        computed: prompt tokens that were not in the cache.
        seconds: that computing them took.
        queued: seconds that it waited at the engine.
        service: seconds that it ran there.
        final: its program has nothing to do after it that is known of.
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
    """Report an LLM call without an answer: its engine failed, or nobody waits for it."""

    program: str
    step: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """Report the running calls that decoded tokens in one engine step.

    Attributes:
        engine: at which.
        calls: program, step and context tokens of each call.
    """

    engine: str
    calls: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Preempted:
    """Report a call that was preempted for want of blocks; it waits at its engine for some."""

    program: str
    step: str
    engine: str


@dataclass(frozen=True, slots=True)
class ToolNamed:
    """Report that the model has named a tool that it is about to call.

    Attributes:
        program: whose call it is.
        tool: its name.
        env: key of the environment that it runs in; None if it needs none.
    """

    program: str
    tool: str
    env: str | None


@dataclass(frozen=True, slots=True)
class ToolReady:
    """Announce a tool call whose program has its environment.

    Attributes:
        program: whose call it is.
        conversation: that waits for it.
        call: its name at the host.
        tool: its name.
        host: of the environment.
    """

    program: str
    conversation: str
    call: str
    tool: str
    host: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """Report a tool call that has begun to run.

    Attributes:
        program: whose call it is.
        conversation: that waits for it.
        tool: its name.
        env: key of the environment that it runs in; None if it needs none.
    """

    program: str
    conversation: str
    tool: str
    env: str | None


@dataclass(frozen=True, slots=True)
class Forked:
    """Report that a conversation was forked.

    Attributes:
        program: whose conversation it is.
        parent: conversation that was forked.
        child: conversation that begins.
        engine: of the child.
        shared: tokens of the parent that the child begins with; None is all of them.
    """

    program: str
    parent: str
    child: str
    engine: str
    shared: int | None = None


@dataclass(frozen=True, slots=True)
class ConversationEnded:
    """Report a conversation that nobody will continue."""

    program: str
    conversation: str


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """Report a program that returned, failed, was cancelled, or lost its client.

    Attributes:
        program: its name.
        keep: leave its KV in the cache while there is room, as somebody may go on from it.
    """

    program: str
    keep: bool = False


@dataclass(frozen=True, slots=True)
class EngineUp:
    """Report an engine that is up, or has other sizes than before.

    Attributes:
        engine: its name.
        kv_tokens: capacity of its device in KV tokens.
        host_tokens: capacity of host memory behind it.
        longest: tokens of the longest conversation that it can have; 0 if it reports that itself.
    """

    engine: str
    kv_tokens: int
    host_tokens: int = 0
    longest: int = 0


@dataclass(frozen=True, slots=True)
class EngineDown:
    """Report an engine that is gone, with all of its KV; it may come up again."""

    engine: str


@dataclass(frozen=True, slots=True)
class EngineDrain:
    """Report an engine that is about to go: its calls may end, but it gets no others.

    `EngineUp` takes it back.
    """

    engine: str


@dataclass(frozen=True, slots=True)
class TenantShare:
    """Set the weight and the limits of a tenant.

    Attributes:
        tenant: its name.
        weight: share of service where others wait as well.
        programs: the most programs that may be active at a time.
        kv_tokens: no further program is admitted once active ones have reserved so many tokens.

    Raises:
        ConfigError: nothing would ever run with this weight or limit.
    """

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
        """Parse ``NAME:weight=2,programs=8,kv_tokens=100000``.

        Raises:
            ConfigError: the text is something else.
        """
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
    """Report that a time has come at which the scheduler asked for a tick."""


@dataclass(frozen=True, slots=True)
class HostUp:
    """Report a sandbox host.

    Attributes:
        host: its name.
        slots: environments that fit on it, used or not.
        parks: it can park an environment while nothing runs in it.
    """

    host: str
    slots: int
    parks: bool = False


@dataclass(frozen=True, slots=True)
class HostState:
    """Report the warm environments of one key on a sandbox host.

    Attributes:
        host: its name.
        env: the key.
        warm: environments that are ready.
        creating: environments that are being made.
        limit: the most that its pool may keep.
        cold: seconds that making one took lately; 0 if none was made.
    """

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
    | Forked
    | ConversationEnded
    | ProgramEnded
    | EngineUp
    | EngineDown
    | EngineDrain
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
    "ToolNamed",
    "ToolReady",
    "ToolStarted",
]
