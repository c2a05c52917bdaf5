"""What a program did when: the bars of its timeline, from its rows in the store."""

from dataclasses import dataclass
from enum import StrEnum

from drawloom.runtime.store import DecisionRow, ProgramRow, StepRow, Store


class Activity(StrEnum):
    """What a program is doing; `LEASED` runs beside the others: its KV is kept for it."""

    HELD = "held"
    QUEUED = "queued"
    PREFILL = "prefill"
    RECOMPUTE = "recompute"
    DECODE = "decode"
    ENV = "env"
    TOOL = "tool"
    LEASED = "leased"


@dataclass(frozen=True, slots=True)
class Bar:
    """From `start` to `end`, wall-clock seconds. `label` says which call it was."""

    activity: Activity
    start: float
    end: float
    label: str


@dataclass(frozen=True, slots=True)
class Track:
    """One program's bars."""

    program: str
    agent: str
    status: str
    created: float
    ended: float
    bars: tuple[Bar, ...]


async def read_track(store: Store, program: str) -> Track:
    """The timeline of a program so far. Raises `StoreError` for an unknown one."""
    row = await store.program(program)
    return make_track(row, await store.steps(program), await store.decisions(program))


def make_track(row: ProgramRow, steps: list[StepRow], decisions: list[DecisionRow]) -> Track:
    bars: list[Bar] = []
    if row.started is not None:
        bars.append(Bar(Activity.HELD, row.created, row.started, "waiting for admission"))
    for step in steps:
        bars += _llm_bars(step) if step.kind == "llm" else _tool_bars(step)
    bars += _lease_bars(steps, decisions)
    end = row.ended or max([row.created, *(b.end for b in bars)])
    bars.sort(key=lambda b: (b.start, b.activity))
    return Track(row.id, row.agent, row.status, row.created, end, tuple(bars))


def _llm_bars(step: StepRow) -> list[Bar]:
    times = step.detail.get("times") or {}
    if not times:
        return []
    detail, first = step.detail, times["first"]
    asked = detail["prompt"] - detail["cached"]
    again = max(0, asked - len(detail["delta"]))
    # one computation: its time is shared by its tokens
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
        what = f"{step.key}: {again} prompt tokens computed a second time"
        bars.append(Bar(Activity.RECOMPUTE, middle, first, what))
    return bars


def _tool_bars(step: StepRow) -> list[Bar]:
    if step.ended is None:
        return []
    what = str(step.detail.get("arguments", ""))[:60]
    ready = step.started + step.detail.get("env_wait", 0.0)
    wait = Bar(Activity.ENV, step.started, ready, "an environment for " + step.name)
    work = Bar(Activity.TOOL, ready, step.ended, f"{step.name} {what}")
    return [wait, work] if ready - step.started > 1e-3 else [work]


def _lease_bars(steps: list[StepRow], decisions: list[DecisionRow]) -> list[Bar]:
    """From a granted lease until the next LLM call is computed, or the lease ends."""
    starts = sorted(t["started"] for s in steps if (t := s.detail.get("times")))
    bars = []
    for decision in decisions:
        if decision.kind != "LeaseKV" or decision.detail.get("answer") == "missing":
            continue
        back = next((t for t in starts if t > decision.at), None)
        if back is not None:
            end = min(back, decision.at + decision.detail["ttl"])
            tokens = decision.detail.get("tokens", 0)
            bars.append(Bar(Activity.LEASED, decision.at, end, f"{tokens} tokens kept"))
    return bars


__all__ = ["Activity", "Bar", "Track", "make_track", "read_track"]
