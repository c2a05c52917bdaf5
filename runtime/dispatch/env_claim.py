"""A claim of one owner on one environment, and the states that it goes through."""

import asyncio
from dataclasses import dataclass
from enum import Enum, auto

from drawloom.environments import Env
from drawloom.sandbox.api.sandbox import LiveSandbox


@dataclass(frozen=True, slots=True)
class Owner:
    """Name the owner of an environment: a program, one of its branches or of its calls.

    Attributes:
        branch: name of a branch with environments of its own (`best_of(…, fork_env=True)`).
        call: number of a tool call that has an environment to itself (`@tool(fresh=True)`).
    """

    program: str
    branch: str | None = None
    call: int | None = None

    def __str__(self) -> str:
        """Return the spelling that rows of the store and the pool's host have."""
        if self.branch is not None:
            return f"{self.program}@{self.branch}"
        return self.program if self.call is None else f"{self.program}/{self.call}"

    @classmethod
    def parse(cls, text: str) -> "Owner":
        """Read an owner as it is stored."""
        program, at, branch = text.partition("@")
        if at:
            return cls(program, branch)
        program, slash, call = text.partition("/")
        return cls(program, call=int(call)) if slash else cls(program)


class ClaimState(Enum):
    """Enumerate the states of a claim.

    Attributes:
        CLAIMING: an environment is being taken or made.
        LIVE: the owner has the environment, and a row says so.
        PARKING: its files are being kept; claims wait.
        PARKED: the environment is gone, its files are in a snapshot.
        RESTORING: an environment is being made of the snapshot.
        RELEASED: the owner has nothing any more.
    """

    CLAIMING = auto()
    LIVE = auto()
    PARKING = auto()
    PARKED = auto()
    RESTORING = auto()
    RELEASED = auto()


# An untouched environment is not parked but given back: claimed anew if somebody waits for it. One
# that cannot be parked stays live; a restoration that fails or is given up leaves the snapshot.
ALLOWED = {
    ClaimState.CLAIMING: {ClaimState.LIVE, ClaimState.RELEASED},
    ClaimState.LIVE: {ClaimState.PARKING, ClaimState.RELEASED},
    ClaimState.PARKING: {
        ClaimState.PARKED,
        ClaimState.LIVE,
        ClaimState.CLAIMING,
        ClaimState.RELEASED,
    },
    ClaimState.PARKED: {ClaimState.RESTORING, ClaimState.RELEASED},
    ClaimState.RESTORING: {ClaimState.LIVE, ClaimState.PARKED, ClaimState.RELEASED},
    ClaimState.RELEASED: set[ClaimState](),
}


@dataclass(slots=True, eq=False)
class EnvClaim:
    """Keep one owner's claim on the environment of one key.

    Attributes:
        sandbox: the environment; None while there is none.
        snapshot: where the files are while the claim is parked.
        base_snapshot: what the live environment was restored from; needed for as long as it lives.
        users: calls that run in the environment; parking waits for 0.
        was_ready: whether the environment was there before it was asked for.
        stall_counted: whether somebody has waited for it, and that was counted.
        opening: brings the claim to LIVE; whoever needs the environment waits for it.
        parking: keeps the files; shared by all claims that are parked together.
    """

    owner: Owner
    env: Env
    state: ClaimState = ClaimState.CLAIMING
    sandbox: LiveSandbox | None = None
    snapshot: str | None = None
    base_snapshot: str | None = None
    users: int = 0
    was_ready: bool = False
    stall_counted: bool = False
    opening: "asyncio.Task[None] | None" = None
    parking: "asyncio.Task[None] | None" = None

    @property
    def key(self) -> tuple[Owner, str]:
        """Return what there is one claim of: the owner and the environment's key."""
        return self.owner, self.env.key

    @property
    def ids(self) -> set[str]:
        """Return the ids of the environment and of the snapshot to restore."""
        live = {self.sandbox.id} if self.sandbox is not None else set()
        return live | ({self.snapshot} if self.snapshot is not None else set())

    def move(self, to: ClaimState) -> None:
        """Change the state. Raises `ValueError` for a change that `ALLOWED` does not have."""
        if to not in ALLOWED[self.state]:
            raise ValueError(f"a claim of {self.owner} that is {self.state.name} becomes {to.name}")
        self.state = to


__all__ = ["ALLOWED", "ClaimState", "EnvClaim", "Owner"]
