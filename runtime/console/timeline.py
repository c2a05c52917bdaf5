"""Timelines of programs, from their rows in the store."""

from dataclasses import dataclass, replace
from enum import StrEnum

from drawloom.runtime.store.store import DecisionRow, ProgramRow, StepRow, Store


class Activity(StrEnum):
    """Name an activity of a program.

    `DEAD`: no process ran it. `LEASED`: its KV is leased, at the same time as other activities.
    """

    HELD = "held"
    QUEUED = "queued"
    PREFILL = "prefill"
    RECOMPUTE = "recompute"
    DECODE = "decode"
    ENV = "env"
    TOOL = "tool"
    DEAD = "dead"
    LEASED = "leased"


RESUMED = "Resumed"
"""Kind of the decision to resume a program; `since` is when its last process was alive."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Describe one activity.

    Attributes:
        start, end: wall-clock seconds.
        label: the call, for people.
    """

    activity: Activity
    start: float
    end: float
    label: str


@dataclass(frozen=True, slots=True)
class Track:
    """Describe a program with the bars of its timeline; times are wall-clock seconds."""

    program: str
    agent: str
    status: str
    created: float
    ended: float
    error: str | None
    bars: tuple[Bar, ...]


async def read_track(store: Store, program: str) -> Track:
    """Read the timeline of a program so far.

    Raises:
        StoreError: the program is unknown.
    """
    row = await store.program(program)
    return make_track(row, await store.steps(program), await store.decisions(program))


def make_track(row: ProgramRow, steps: list[StepRow], decisions: list[DecisionRow]) -> Track:
    """Return the timeline of a program from its rows."""
    bars: list[Bar] = []
    dead = _dead(decisions)
    if row.started is not None:
        bars.append(Bar(Activity.HELD, row.created, row.started, "waiting for admission"))
    for step in steps:
        if step.kind == "llm":
            bars += _llm_bars(step)
        elif step.kind == "tool":
            bars += _tool_bars(step, dead)
    bars += _lease_bars(steps, decisions)
    bars = [piece for bar in bars for piece in _alive(bar, dead)]
    bars += [Bar(Activity.DEAD, start, end, "no process ran it") for start, end in dead]
    end = row.ended or max([row.created, *(b.end for b in bars)])
    bars.sort(key=lambda b: (b.start, b.activity))
    return Track(
        program=row.id,
        agent=row.agent,
        status=row.status,
        created=row.created,
        ended=end,
        error=row.error,
        bars=tuple(bars),
    )


def _dead(decisions: list[DecisionRow]) -> list[tuple[float, float]]:
    """Return the intervals in which no process ran the program."""
    resumed = (d for d in decisions if d.kind == RESUMED)
    return [(min(float(d.detail["since"]), d.at), d.at) for d in resumed]


def _alive(bar: Bar, dead: list[tuple[float, float]]) -> list[Bar]:
    """Return the parts of a bar in which a process ran the program."""
    pieces = [bar]
    for start, end in dead:
        left: list[Bar] = []
        for piece in pieces:
            if piece.end <= start or piece.start >= end:
                left.append(piece)
                continue
            if piece.start < start:
                left.append(replace(piece, end=start))
            if piece.end > end:
                left.append(replace(piece, start=end))
        pieces = left
    return pieces


def _llm_bars(step: StepRow) -> list[Bar]:
    times = step.detail.get("times") or {}
    if not times:
        return []
    detail, first = step.detail, times["first"]
    asked = detail["prompt"] - detail["cached"]
    again = max(0, asked - len(detail["delta"]))
    # new and recomputed tokens are one computation; split its time by tokens
    middle = first - (first - times["started"]) * (again / asked if asked else 0.0)
    bars = [
        Bar(Activity.QUEUED, step.started, times["started"], step.key),
        Bar(
            Activity.PREFILL,
            times["started"],
            middle,
            f"{step.key}: {asked - again} new of {detail['prompt']} prompt tokens",
        ),
        Bar(
            Activity.DECODE, first, times["finished"], f"{step.key}: {len(detail['output'])} tokens"
        ),
    ]
    if again:
        what = f"{step.key}: {again} prompt tokens recomputed"
        bars.append(Bar(Activity.RECOMPUTE, middle, first, what))
    return bars


def _tool_bars(step: StepRow, dead: list[tuple[float, float]]) -> list[Bar]:
    if step.ended is None:
        return []
    what = f"{step.name} {str(step.detail.get('arguments', ''))[:60]}"
    # a call in flight when its process died waits for its environment again
    again = max((end for _, end in dead if step.started < end < step.ended), default=step.started)
    ready = min(step.ended, again + step.detail.get("env_wait", 0.0))
    before = [Bar(Activity.TOOL, step.started, again, what)] if again > step.started else []
    wait = Bar(Activity.ENV, again, ready, "an environment for " + step.name)
    work = Bar(Activity.TOOL, ready, step.ended, what)
    return [*before, wait, work] if ready - again > 1e-3 else [*before, work]


def _lease_bars(steps: list[StepRow], decisions: list[DecisionRow]) -> list[Bar]:
    """Return bars from each granted lease to the next LLM call or the end of the lease."""
    starts = sorted(t["started"] for s in steps if (t := s.detail.get("times")))
    bars = []
    for decision in decisions:
        if decision.kind != "LeaseKV" or decision.detail.get("answer") == "missing":
            continue
        back = next((t for t in starts if t > decision.at), None)
        if back is not None:
            end = min(back, decision.at + decision.detail["ttl"])
            tokens = decision.detail.get("tokens", 0)
            bars.append(Bar(Activity.LEASED, decision.at, end, f"{tokens} tokens leased"))
    return bars


__all__ = ["RESUMED", "Activity", "Bar", "Track", "make_track", "read_track"]
