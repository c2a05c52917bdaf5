"""Ask a policy everything that it decides, and see whether that changed anything."""

from collections import deque
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from drawloom.runtime.scheduler import Policy
from drawloom.runtime.scheduler.events import ToolReady
from drawloom.runtime.scheduler.state import SchedulerState

# What is worked out when it is asked for, and is the same whenever that is: not a change.
_CACHES = {
    "QuantileSketch": {"_sums"},
    "ProbeCost": {"_costs"},
    "LearnedCost": {"_model"},
    "ProgramState": {"due_at", "queue", "rank_version"},
    "SchedulerState": {"wait_queue"},
}


def snapshot(value: Any) -> Any:
    """Return all that there is in a value, as plain data that can be compared."""
    return _plain(value, {})


def _plain(value: Any, seen: dict[int, int]) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple | deque):
        return [_plain(one, seen) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if id(value) in seen:
        return f"#{seen[id(value)]}"
    seen[id(value)] = len(seen)
    if isinstance(value, dict):
        found = {key: _plain(one, seen) for key, one in value.items()}
        return [list(found.items()), _fields(value, seen)]
    if callable(value) or not type(value).__module__.startswith("drawloom"):
        return repr(value)
    return _fields(value, seen)


def _fields(value: Any, seen: dict[int, int]) -> dict[str, Any]:
    kind = type(value).__name__
    if is_dataclass(value):
        names = {field.name for field in fields(value)}
    else:
        slots = (name for base in type(value).__mro__ for name in getattr(base, "__slots__", ()))
        names = {*slots, *getattr(value, "__dict__", ())}
    kept = sorted(names - _CACHES.get(kind, set()))
    return {"": kind} | {name: _plain(getattr(value, name), seen) for name in kept}


def ask_everything(policy: Policy, state: SchedulerState, now: float) -> None:
    """Ask for every decision that can be asked for at this moment, and carry out none."""
    for program in state.programs.values():
        policy.agent_rank(state, program)
        policy.max_wait(state, program)
        policy.grant(state, program)
        policy.absence(state, program, None)
        policy.rank(state, program)
        policy.reserve(state, program)
        policy.would_admit(state, program)
        for conversation in program.conversations.values():
            policy.retain(state, program, conversation, now)
            policy.retain_paused(state, program, conversation, now)
            ready = ToolReady(program.id, conversation.id, "c", "t", "h")
            policy.tool_priority(state, program, ready, now)
        for step in [*program.pending_steps.values(), *program.running_steps.values()]:
            policy.step_priority(state, program, step, now)
    next(iter(policy.admit(state, now)), None)  # the next is asked for when this one is active
    for env in state.env_capacity.demand:
        policy.warm_target(state, env, now)


__all__ = ["ask_everything", "snapshot"]
