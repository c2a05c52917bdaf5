"""Store of programs, steps, decisions and leases, as rows in SQL.

Steps are append-only rows with a stable key; nothing is ever a snapshot of something larger. A
tool's intent is committed before the tool starts, its result and an LLM call's end before the
program goes on; decisions ride along with the next commit. SQLite in a file is the default;
PostgreSQL is another URL. One runtime owns a store at a time; readers need no lock.
"""

import time
from typing import Any

import sqlalchemy as sa

from drawloom.errors import StoreDamaged, StoreError
from drawloom.runtime.store.database import Database, RowExists
from drawloom.runtime.store.database_errors import plain_text
from drawloom.runtime.store.schema import (
    DECISIONS,
    GRAPHS,
    LEASES,
    OPEN,
    PROGRAMS,
    STEPS,
    DecisionRow,
    LeaseRow,
    ProgramRow,
    StepRow,
    unreadable,
)


class Store(Database):
    """Read and write the rows of a runtime."""

    # --- programs -------------------------------------------------------------------------

    async def add_program(
        self, id: str, agent: str, entry: str, arguments: Any, options: dict[str, Any]
    ) -> None:
        """Add a program that is held.

        Args:
            id: its id.
            agent: name of the agent.
            entry: module and name by which `drawloom resume` finds the agent.
            arguments: of the agent, as JSON.
            options: under which it is started.
        """
        row = {
            "id": id,
            "agent": agent,
            "entry": entry,
            "arguments": arguments,
            "options": options,
            "status": "held",
            "created": time.time(),
        }
        await self._write(sa.insert(PROGRAMS).values(row))

    async def set_program(self, id: str, **values: Any) -> None:
        """Change a program's status, times, result or error."""
        if values.get("error") is not None:
            values["error"] = plain_text(values["error"])
        await self._write(sa.update(PROGRAMS).where(PROGRAMS.c.id == id).values(**values))

    async def program(self, id: str) -> ProgramRow:
        """Return the row of a program.

        Raises:
            StoreError: there is no such program.
            StoreDamaged: its row cannot be read.
        """
        query = sa.select(PROGRAMS).where(PROGRAMS.c.id == id)
        rows = await self._read(query, f"program {id}")
        if not rows:
            raise StoreError(f"there is no program {id} in {self.url}: see `drawloom ps`")
        return ProgramRow(**rows[0])

    async def programs(self, limit: int = 100) -> list[ProgramRow]:
        """List programs, the newest first; a damaged row is ``unreadable`` and hides no other."""
        newest = PROGRAMS.c.created.desc()
        try:
            rows = await self._read(sa.select(PROGRAMS).order_by(newest).limit(limit))
            return [ProgramRow(**row) for row in rows]
        except StoreDamaged:
            ids = await self._read(sa.select(PROGRAMS.c.id).order_by(newest).limit(limit))
            return [await self._readable(row["id"]) for row in ids]

    async def _readable(self, id: str) -> ProgramRow:
        try:
            return await self.program(id)
        except StoreError as error:
            return unreadable(id, str(error))

    async def open_programs(self) -> set[str]:
        """Return the ids of programs that run or may be resumed, without reading their rows."""
        query = sa.select(PROGRAMS.c.id).where(PROGRAMS.c.status.in_(OPEN))
        return {row["id"] for row in await self._read(query)}

    # --- steps ----------------------------------------------------------------------------

    async def intend(self, program: str, key: str, name: str, detail: dict[str, Any]) -> None:
        """Record that a tool is about to start. Committed when this returns.

        Raises:
            RowExists: the step has a record already.
        """
        row = {
            "program": program,
            "key": key,
            "kind": "tool",
            "name": name,
            "status": "intent",
            "started": time.time(),
            "detail": detail,
        }
        await self._write(sa.insert(STEPS).values(row))

    async def end_tool(self, program: str, key: str, detail: dict[str, Any]) -> None:
        """Record the end of a tool call. Committed when this returns."""
        where = sa.and_(STEPS.c.program == program, STEPS.c.key == key)
        change = {"status": "done", "ended": time.time(), "detail": detail}
        await self._write(sa.update(STEPS).where(where).values(change))

    async def add_llm(
        self, program: str, key: str, started: float, ended: float, detail: dict[str, Any]
    ) -> None:
        """Record the end of an LLM call. Committed when this returns.

        Args:
            program: id of the program.
            key: of the step.
            started: Unix time, as `ended`.
            detail: the sampled ids, not text to be tokenised again.

        Raises:
            RowExists: the step has a record already.
        """
        await self._add(program, key, ("llm", "llm"), (started, ended), detail)

    async def add_branch(self, program: str, key: str, name: str, detail: dict[str, Any]) -> None:
        """Record which branch decided the result of a `gather` or a `best_of`."""
        now = time.time()
        await self._add(program, key, ("branch", name), (now, now), detail)

    async def _add(
        self,
        program: str,
        key: str,
        what: tuple[str, str],
        when: tuple[float, float],
        detail: dict[str, Any],
    ) -> None:
        row = {
            "program": program,
            "key": key,
            "kind": what[0],
            "name": what[1],
            "status": "done",
            "started": when[0],
            "ended": when[1],
            "detail": detail,
        }
        await self._write(sa.insert(STEPS).values(row))

    async def note_intent(self, program: str, key: str, detail: dict[str, Any]) -> None:
        """Replace the detail of a tool call that has begun. Committed when this returns."""
        where = sa.and_(STEPS.c.program == program, STEPS.c.key == key)
        await self._write(sa.update(STEPS).where(where).values(detail=detail))

    async def forget_steps(self, program: str, keys: list[str]) -> None:
        """Remove the records of steps, so that these run again."""
        if keys:
            mine = STEPS.c.program == program
            await self._write(sa.delete(STEPS).where(mine, STEPS.c.key.in_(keys)))

    async def steps(self, program: str) -> list[StepRow]:
        """List the recorded steps of a program. Raises `StoreDamaged` when one is unreadable."""
        query = sa.select(STEPS).where(STEPS.c.program == program).order_by(STEPS.c.started)
        rows = await self._read(query, f"a step of program {program}")
        return [StepRow(**row) for row in rows]

    async def step(self, program: str, key: str) -> StepRow | None:
        """Return the record of a step, if there is one."""
        query = sa.select(STEPS).where(STEPS.c.program == program, STEPS.c.key == key)
        rows = await self._read(query, f"step {key} of program {program}")
        return StepRow(**rows[0]) if rows else None

    # --- decisions and leases -------------------------------------------------------------

    def decide(self, program: str, kind: str, detail: dict[str, Any]) -> None:
        """Record a decision; it is written with the next commit."""
        self._pending.append(
            {"program": program, "at": time.time(), "kind": kind, "detail": detail}
        )

    async def decisions(self, program: str) -> list[DecisionRow]:
        """List the scheduler's decisions about a program, in their order."""
        columns = [c for c in DECISIONS.c if c.name != "id"]
        query = sa.select(*columns).where(DECISIONS.c.program == program).order_by(DECISIONS.c.id)
        return [DecisionRow(**row) for row in await self._read(query)]

    async def lease(self, row: LeaseRow) -> None:
        """Add a lease. Committed when this returns."""
        values = {name: getattr(row, name) for name in LeaseRow.__slots__}
        await self._write(sa.insert(LEASES).values(values))

    async def unlease(self, program: str) -> None:
        """Remove all leases of an owner."""
        await self._write(sa.delete(LEASES).where(LEASES.c.program == program))

    async def retain(self, program: str, sandboxes: set[str]) -> None:
        """Remove the leases of an owner but those of these environments."""
        gone = LEASES.c.sandbox.not_in(sandboxes)
        await self._write(sa.delete(LEASES).where(LEASES.c.program == program, gone))

    async def hand_over(self, branch: str, program: str, envs: set[str]) -> None:
        """Move leases of a branch to its program, replacing those of the same declarations."""
        mine, theirs = LEASES.c.program == program, LEASES.c.program == branch
        await self._write(
            sa.delete(LEASES).where(mine, LEASES.c.env.in_(envs)),
            sa.update(LEASES).where(theirs).values(program=program),
        )

    async def leases(self) -> list[LeaseRow]:
        """List all leases."""
        return [LeaseRow(**row) for row in await self._read(sa.select(LEASES))]

    # --- learned graphs --------------------------------------------------------------------

    async def save_graphs(self, learned: dict[str, dict[str, Any]]) -> None:
        """Replace the learned graphs of these agents."""
        rows = [{"agent": a, "at": time.time(), "learned": data} for a, data in learned.items()]
        if rows:
            gone = sa.delete(GRAPHS).where(GRAPHS.c.agent.in_(list(learned)))
            await self._write(gone, sa.insert(GRAPHS).values(rows))

    async def graphs(self) -> dict[str, dict[str, Any]]:
        """Return the learned graphs by agent; a store of an early version has none."""
        if not await self._run(lambda: sa.inspect(self._engine).has_table("graphs")):
            return {}
        rows = await self._read(sa.select(GRAPHS).order_by(GRAPHS.c.agent))
        return {row["agent"]: row["learned"] for row in rows}


__all__ = ["DecisionRow", "LeaseRow", "ProgramRow", "RowExists", "StepRow", "Store"]
