"""Several engines behind one front: a core for each, programs that belong to one of them, and move.

SAGA's three (arXiv 2605.00528, §1.5 of research/scheduling.md), for every policy alike: affinity
(a program's calls go where its KV is), stealing (an engine that holds nobody back takes a program
from the one that holds most, the first in the policy's order) and migration (its KV goes with it;
so it does when an engine is loaded and another half as much). Programs move at tool boundaries.
From an engine that drains each moves at its next one; from one that is down all do at once, without
their KV. Tenants, environments and what was learned of agents are one for all.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from drawloom.errors import ConfigError, EngineError
from drawloom.runtime.scheduler.actions import Action, MoveKV, ReleaseKV
from drawloom.runtime.scheduler.events import (
    Decoded,
    EngineDown,
    EngineDrain,
    EngineLoad,
    EngineUp,
    Event,
    Forked,
    HostState,
    HostUp,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    TenantShare,
    Tick,
)
from drawloom.runtime.scheduler.policy import Policy
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.scheduler import Scheduler

ROUTING = ("affine", "sticky", "scatter")
_LOADED, _APART = 0.8, 2.0
_GUESS = 0.125


class MultiEngineScheduler:
    """As a `Scheduler`, for as many engines as are up. What is held when none is, waits for one.

    Args:
        routing: ``affine`` is all of the above; ``sticky`` only affinity; with ``scatter`` every
            call of a program that has no other running goes to the engine with the least to do,
            and its KV stays behind.

    Raises `ConfigError` for another routing, `EngineError` for a program before any engine is up.
    """

    def __init__(self, policy: Policy, routing: str = "affine") -> None:
        if routing not in ROUTING:
            raise ConfigError(f"routing {routing!r}: choose {', '.join(ROUTING)}")
        self.policy, self.routing = policy, routing
        self.engines: dict[str, Scheduler] = {}
        self.moves = 0
        self._homes: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._given: dict[str, int] = {}
        self._backlog: set[str] = set()
        self._everywhere: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            EngineUp: self._engine_up,
            EngineDown: self._told,
            EngineDrain: self._told,
            EngineLoad: self._told,
            HostUp: self._shared,
            HostState: self._shared,
            TenantShare: self._shared,
            Decoded: self._told,
            Tick: lambda event, now: [
                a for s in self.engines.values() for a in s.handle(event, now)
            ],
        }

    def handle(self, event: Any, now: float) -> list[Action]:
        """What to do about an event at time `now` (seconds; never goes back)."""
        for_all = self._everywhere.get(type(event))
        if for_all is not None:
            actions = for_all(event, now)
            self._backlog = {
                name for name, one in self.engines.items() if one.state.wait_queue.programs
            }
            return actions + self._leave(now) + self._steal(now)
        if isinstance(event, ProgramSubmitted):
            self._settle(event)
        home = self._homes.get(event.program)
        if home is None:
            return []
        actions = self._at_home(event, home, now)
        return actions + self._leave(now) + self._steal(now)

    def _at_home(self, event: Any, home: str, now: float) -> list[Action]:
        """An event of a program, which may go elsewhere on the way."""
        actions = list[Action]()
        if isinstance(event, StepReady):
            home, actions = self._place(event, home, now)
        if isinstance(event, StepReady | StepFinished | Forked):
            event = replace(event, engine=home)
        limited = self._limited(event)
        actions += self.engines[home].handle(event, now)
        if isinstance(event, ProgramEnded):
            del self._homes[event.program]
            self._given[home] -= self._sizes.pop(event.program)
        for name in self.engines if limited else (home,):
            if limited and name != home:
                actions += self.engines[name].rebalance(now)
            self._look(name)
        return actions

    def _limited(self, event: Any) -> bool:
        """Whether others of a tenant with limits may run elsewhere, now that this one stops."""
        if not isinstance(event, ProgramEnded | StepFinished):
            return False
        state = self.engines[self._homes[event.program]].state
        program = state.programs.get(event.program)
        return program is not None and state.tenants.of(program).limited

    def _look(self, name: str) -> None:
        held = self.engines[name].state.wait_queue.programs
        (self._backlog.add if held else self._backlog.discard)(name)

    # --- engines and what they share ------------------------------------------------------

    def _engine_up(self, event: EngineUp, now: float) -> list[Action]:
        if event.engine not in self.engines:
            shared_with = next((one.state for one in self.engines.values()), None)
            self.engines[event.engine] = Scheduler(self.policy, shared_with)
            self._given[event.engine] = 0
        return self.engines[event.engine].handle(event, now)

    def _told(self, event: Any, now: float) -> list[Action]:
        """Heard by the engine that it is about, if that is there."""
        core = self.engines.get(event.engine)
        return [] if core is None else core.handle(event, now)

    @property
    def _open(self) -> list[str]:
        """Engines that take programs."""
        return [name for name, one in self.engines.items() if not one.state.closed]

    def _leave(self, now: float) -> list[Action]:
        """Programs leave engines that are down or drain for one that is there; what is down and
        empty is forgotten."""
        actions, there = list[Action](), self._open
        if not there or len(there) == len(self.engines):
            return actions
        for name in sorted(self.engines.keys() - there):
            state = self.engines[name].state
            for program in list(state.wait_queue.programs.values()):
                if not program.running:
                    actions += self._move(program, min(there, key=self._load), now)
            if not state.engines and not state.programs:
                del self.engines[name], self._given[name]
                self._backlog.discard(name)
                state.tenants.unwatch(state.wait_queue.freed)
        return actions

    def _shared(self, event: Event, now: float) -> list[Action]:
        """Heard by one; the others look again at what they hold."""
        first, *others = self.engines.values()
        actions = first.handle(event, now)
        return actions + [action for other in others for action in other.rebalance(now)]

    def _tick(self, event: Event, now: float) -> list[Action]:
        return [action for one in self.engines.values() for action in one.handle(event, now)]

    # --- where programs are ---------------------------------------------------------------

    def _settle(self, event: ProgramSubmitted) -> None:
        """A new program's home is the engine to which least was given, for its size."""
        if event.program in self._homes:
            return
        if not self.engines:
            raise EngineError(f"program {event.program} has nowhere to go: no engine is up")
        home = min(self._open or self.engines, key=self._share)
        state = self.engines[home].state
        usual = state.graph(event.agent).stats.mean_peak_tokens
        guess = event.expect_tokens or int(_GUESS * state.capacity)
        self._sizes[event.program] = guess if usual is None else usual
        self._homes[event.program] = home
        self._given[home] += self._sizes[event.program]

    def _share(self, name: str) -> float:
        return self._given[name] / max(1, self.engines[name].state.capacity)

    def _load(self, name: str) -> float:
        state = self.engines[name].state
        return state.tokens / max(1, state.capacity)

    def _waiting(self, name: str) -> tuple[int, str]:
        return len(self.engines[name].state.wait_queue.programs), name

    def _place(self, event: StepReady, home: str, now: float) -> tuple[str, list[Action]]:
        """Where a call goes: home, or with its program to where there is less to do."""
        program = self.engines[home].state.programs[event.program]
        if self.routing == "sticky" or not program.active or not program.at_tool_boundary:
            return home, []
        load = self._load(home)
        if self.routing == "affine" and load < _LOADED:
            return home, []
        other = min(self._open, key=self._load, default=home)
        apart = _APART if self.routing == "affine" else 1.0
        if other == home or self._load(other) * apart >= load:
            return home, []
        return other, self._move(program, other, now)

    def _steal(self, now: float) -> list[Action]:
        """Engines that hold nobody back take programs that others hold."""
        actions = list[Action]()
        if self.routing != "affine":
            return actions
        while self._backlog and (idle := set(self._open) - self._backlog):
            victim = max(self._backlog, key=self._waiting)
            program = self.engines[victim].state.wait_queue.first
            thief = min(idle, key=lambda n: (self._load(n), n))
            if program is None or not self.policy.takes(self.engines[thief].state, program):
                break
            actions += self._move(program, thief, now)
            if not program.active:
                break
        return actions

    def _move(self, program: ProgramState, target: str, now: float) -> list[Action]:
        source, name = self._homes[program.id], program.id
        self.moves += 1
        self._homes[name] = target
        self._given[source] -= self._sizes[name]
        self._given[target] += self._sizes[name]
        actions = list[Action]()
        for conversation in (
            program.conversations.values() if program.begun and not program.kv_lost else ()
        ):
            if self.routing != "scatter" and program.steps:  # before, there is none
                actions.append(MoveKV(source, target, name, conversation.id))
            actions.append(ReleaseKV(source, name, conversation.id, self.policy.evict_at_end))
        self.engines[source].withdraw(program)
        actions += self.engines[source].rebalance(now)
        actions += self.engines[target].accept(program, target, now)
        self._look(source)
        self._look(target)
        return actions


__all__ = ["ROUTING", "MultiEngineScheduler"]
