"""A resumed program and its record: what is replayed, what is run again, where they differ."""

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from drawloom.errors import ConfigError, ReplayMismatch, StoreError
from drawloom.runtime.store.declared_classes import argument_classes, declared_classes
from drawloom.runtime.store.error_json import restore_error
from drawloom.runtime.store.result_json import NotKept, decode, encode
from drawloom.runtime.store.store import ProgramRow, StepRow, Store
from drawloom.tools.tool import Tool

if TYPE_CHECKING:
    from drawloom.runtime.execution.program import Program

_SHOWN = 60
_PARKED_SECONDS = 60.0
_POLL_SECONDS = 0.1


def difference(recorded: str, now: str) -> str:
    """Return two texts from a little before their first difference on."""
    same = 0
    for one, other in zip(recorded, now, strict=False):
        if one != other:
            break
        same += 1
    begin = max(0, same - _SHOWN // 3)

    def part(text: str) -> str:
        cut = text[begin : begin + _SHOWN]
        return ("…" if begin else "") + cut + ("…" if len(text) > begin + _SHOWN else "")

    return f"recorded {part(recorded)!r}, now {part(now)!r} (they differ from character {same} on)"


def check_arguments(program: "Program", row: StepRow, arguments: Any) -> None:
    """Compare a tool call with its record.

    Raises:
        ReplayMismatch: its arguments differ.
    """
    if row.detail.get("arguments") != arguments:
        recorded, now = json.dumps(row.detail.get("arguments")), json.dumps(arguments)
        raise program.mismatch(
            row.key, f"{row.name} has other arguments: {difference(recorded, now)}"
        )


def check_prompt(program: "Program", row: StepRow, fresh: list[int]) -> None:
    """Compare the new tokens of an LLM call with its record.

    Raises:
        ReplayMismatch: they differ.
    """
    if row.detail["delta"] != fresh:
        text = program.dispatcher.engine.tokenizer.decode
        recorded, now = text(row.detail["delta"], special=True), text(fresh, special=True)
        raise program.mismatch(row.key, f"its prompt differs: {difference(recorded, now)}")


def record_value(tool: Tool[..., Any], value: Any) -> tuple[Any, Any]:
    """Return a result as JSON, and as a resumed program will see it.

    Raises:
        NotKept: it cannot be restored.
    """
    classes = declared_classes(tool.fn)
    try:
        kept = encode(value, classes)
        return kept, decode(kept, classes)
    except NotKept as refused:
        raise NotKept(f"tool {tool.name}: {refused}") from None
    except (ValueError, TypeError) as error:
        raise NotKept(f"tool {tool.name}: its result cannot come back: {error}") from None


def record_arguments(agent: str, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return a program's arguments as JSON.

    Raises:
        ConfigError: they cannot be kept.
    """
    given = {"args": list(args), "kwargs": kwargs}
    try:
        return encode(given, argument_classes(fn))
    except NotKept:
        pass
    try:
        return encode(to_jsonable_python(given))
    except (PydanticSerializationError, ValueError, NotKept) as error:
        raise ConfigError(f"agent {agent}: its arguments must be JSON: {error}") from None


def restore_arguments(program: str, fn: Callable[..., Any], recorded: Any) -> Any:
    """Return the arguments that a program began with.

    Raises:
        ReplayMismatch: they do not fit the code any more.
    """
    try:
        return decode(recorded, argument_classes(fn))
    except (ValueError, TypeError, KeyError) as error:
        raise ReplayMismatch(
            f"program {program}: its arguments differ: {error}; resume it with the code that "
            "began it"
        ) from None


def replay_direct(program: "Program", tool: Tool[..., Any], row: StepRow) -> Any:
    """Return what a finished tool call returned, or raise what it raised."""
    detail = row.detail
    if "error" in detail:
        raise restore_error(detail["error"])
    try:
        return decode(detail["value"], declared_classes(tool.fn))
    except (ValueError, TypeError, KeyError) as error:
        raise program.mismatch(row.key, f"the result of {tool.name} differs: {error}") from None


async def settled(program: "Program", key: str) -> StepRow:
    """Wait for the outcome of a step that another process has begun.

    Raises:
        StoreError: there is none after a minute.
    """
    store = program.dispatcher.store
    for _ in range(int(_PARKED_SECONDS / _POLL_SECONDS)):
        row = await store.step(program.id, key)
        if row is not None and row.status == "done":
            program.replay[key] = row
            return row
        await asyncio.sleep(_POLL_SECONDS)
    raise StoreError(
        f"program {program.id} at step {key}: another process began this step and has not ended "
        "it; it was not run again"
    )


async def last_run(store: Store, row: ProgramRow, replay: dict[str, StepRow]) -> float:
    """Return the Unix time of a resumed program's end, or of its process' death."""
    if row.ended is not None:
        return row.ended
    moments = [row.created, row.started, *(d.at for d in await store.decisions(row.id))]
    moments += [step.ended or step.started for step in replay.values()]
    return await store.last_alive(max(moment for moment in moments if moment is not None))


async def ask_again(store: Store, program: str, replay: dict[str, StepRow]) -> None:
    """Forget the LLM calls whose failures ended a program, which would end it again.

    Failures that other steps followed were seen by its code, and stay.
    """
    ended = [row for row in replay.values() if row.ended is not None]
    last: list[str] = []
    for row in sorted(ended, key=lambda row: row.ended or 0.0, reverse=True):
        if row.kind == "tool" or "error" not in row.detail:
            break
        last.append(row.key)
    await store.forget_steps(program, last)
    for key in last:
        del replay[key]


__all__ = [
    "ask_again",
    "check_arguments",
    "check_prompt",
    "difference",
    "last_run",
    "record_value",
    "replay_direct",
    "settled",
]
