"""Tables of a store, and their rows as dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

META = sa.MetaData()
ABOUT = sa.Table(
    "about", META, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String)
)
PROGRAMS = sa.Table(
    "programs",
    META,
    *(
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("agent", sa.String, nullable=False),
        sa.Column("entry", sa.String, nullable=False),
        sa.Column("arguments", sa.JSON, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("status", sa.String, nullable=False, index=True),
        sa.Column("result", sa.JSON),
        sa.Column("error", sa.Text),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
    ),
)
STEPS = sa.Table(
    "steps",
    META,
    *(
        sa.Column("program", sa.String, primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("started", sa.Float, nullable=False),
        sa.Column("ended", sa.Float),
        sa.Column("detail", sa.JSON, nullable=False),
    ),
)
DECISIONS = sa.Table(
    "decisions",
    META,
    *(
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("program", sa.String, index=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
    ),
)
LEASES = sa.Table(
    "leases",
    META,
    *(
        sa.Column("sandbox", sa.String, primary_key=True),
        sa.Column("program", sa.String, nullable=False, index=True),
        sa.Column("env", sa.String, nullable=False),
        sa.Column("provider", sa.String, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    ),
)
GRAPHS = sa.Table(
    "graphs",
    META,
    *(
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("learned", sa.JSON, nullable=False),
    ),
)
LIVES = sa.Table(
    "lives",
    META,
    *(
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("opened", sa.Float, nullable=False),
        sa.Column("alive", sa.Float, nullable=False),
    ),
)


@dataclass(frozen=True, slots=True)
class ProgramRow:
    """Hold a program's row.

    Attributes:
        entry: module and name of the agent.
        arguments: of the agent, as JSON.
        options: under which it was started: policy, tenant, priority, model, sandbox.
        status: held, running, interrupted, done, failed or cancelled; ``unreadable`` when the row
            is damaged, and `error` says how.
        created: Unix time, as `started` and `ended`.
    """

    id: str
    agent: str
    entry: str
    arguments: Any
    options: dict[str, Any]
    status: str
    result: Any
    error: str | None
    created: float
    started: float | None
    ended: float | None

    @property
    def open(self) -> bool:
        """Return whether it may be resumed, and keeps its environments."""
        return self.status in OPEN


OPEN = ("held", "running", "interrupted")


@dataclass(frozen=True, slots=True)
class StepRow:
    """Hold the record of a step.

    Attributes:
        key: stable name of the step in its program.
        kind: llm, tool or branch.
        status: intent (it may have begun) or done.
        started: Unix time, as `ended`.
        detail: arguments, result or sampled tokens.
    """

    program: str
    key: str
    kind: str
    name: str
    status: str
    started: float
    ended: float | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """Hold a decision of the scheduler about a program; `at` is a Unix time."""

    program: str
    at: float
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """Hold the lease of an environment, or of its snapshot, by a program or a branch of one.

    Attributes:
        sandbox: id of the environment or snapshot.
        program: the owner.
        env: key of the environment's declaration.
        created: Unix time.
    """

    sandbox: str
    program: str
    env: str
    provider: str
    host: str
    created: float


_NUMBER = (int, float)
_MAYBE_NUMBER = (int, float, type(None))
_TYPES: dict[str, Any] = {
    "arguments": dict,
    "options": dict,
    "detail": dict,
    "error": (str, type(None)),
    "created": _NUMBER,
    "started": _MAYBE_NUMBER,
    "ended": _MAYBE_NUMBER,
    "at": _NUMBER,
}
_TEXTS = ("id", "agent", "entry", "status", "program", "key", "kind", "name", "sandbox", "env")


def check_row(row: Mapping[str, Any]) -> None:
    """Check that a row's columns have the types that were written. Raises `ValueError`."""
    for name, value in row.items():
        kind = _TYPES.get(name, str if name in _TEXTS else object)
        if not isinstance(value, kind):
            raise ValueError(f"column {name} holds {type(value).__name__}")


def unreadable(id: str, why: str) -> ProgramRow:
    """Return the row that stands for a program whose own is damaged."""
    return ProgramRow(
        id=id,
        agent="?",
        entry="",
        arguments={},
        options={},
        status="unreadable",
        result=None,
        error=why,
        created=0.0,
        started=None,
        ended=None,
    )


__all__ = [
    "ABOUT",
    "DECISIONS",
    "GRAPHS",
    "LEASES",
    "LIVES",
    "META",
    "OPEN",
    "PROGRAMS",
    "STEPS",
    "DecisionRow",
    "LeaseRow",
    "ProgramRow",
    "StepRow",
    "check_row",
    "unreadable",
]
