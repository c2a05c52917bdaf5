"""Scheduler of several engines: one `Scheduler` for each, and programs that move between them.

It does for every policy what SAGA does (arXiv 2605.00528). Affinity: a program's calls go where its
KV is. Stealing: an engine where no program waits takes one from the engine where most wait, the
first in the policy's order. Migration: KV goes with a program, also when an engine is loaded and
another half as much. Programs move at tool boundaries: from an engine that drains at their next
one, from one that is down all at once, without their KV. Tenants, environments and what was learned
of agents are shared.
"""

from dataclasses import replace
from typing import Any

from drawloom.errors import ConfigError, EngineError
from drawloom.runtime.scheduler.actions import Action, MoveKV, ReleaseKV
from drawloom.runtime.scheduler.events import (
    Decoded,
    EngineDown,
    EngineDrain,
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
_LOADED = 0.8  # of an engine's memory, from which on programs leave it
_APART = 2.0  # times as much load as the engine that they go to
_GUESS = 0.125  # of memory: the peak of a program of an unknown agent


class MultiEngineScheduler:
    """Schedule programs on all engines that are up; without one, they wait for the next.

    Args:
        policy: decides.
        routing: ``affine``: affinity, stealing and migration; ``sticky``: affinity alone;
            ``scatter``: every call of a program without a running one goes to the least loaded
            engine, and its KV stays behind.

    Attributes:
        policy: decides.
        routing: as above.
        engines: the scheduler of each engine, by its name.
        moves: how often programs changed their engine.

    Raises:
        ConfigError: for another routing.
    """

    def __init__(self, policy: Policy, routing: str = "affine") -> None:
        if routing not in ROUTING:
            raise ConfigError(f"routing {routing!r}: choose {', '.join(ROUTING)}")
        self.policy, self.routing = policy, routing
        self.engines: dict[str, Scheduler] = {}
        self.moves = 0
        self._homes: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._assigned: dict[str, int] = {}
        self._backlog: set[str] = set()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what to do about an event.

        Args:
            event: has just happened.
            now: seconds; never goes back.

        Raises:
            EngineError: a program is submitted before any engine is up.
        """
        match event:
            case EngineUp():
                actions = self._engine_up(event, now)
            case EngineDown() | EngineDrain() | Decoded():
                actions = self._at_engine(event, now)
            case HostUp() | HostState() | TenantShare():
                actions = self._shared(event, now)
            case Tick():
                actions = [a for one in self.engines.values() for a in one.handle(event, now)]
            case _:
                return self._of_program(event, now)
        self._backlog = {
            name for name, one in self.engines.items() if one.state.wait_queue.programs
        }
        return actions + self._evacuate(now) + self._steal(now)

    # --- events of programs ---------------------------------------------------------------

    def _of_program(self, event: Any, now: float) -> list[Action]:
        if isinstance(event, ProgramSubmitted):
            self._choose_home(event)
        home = self._homes.get(event.program)
        if home is None:
            return []
        actions = self._at_home(event, home, now)
        return actions + self._evacuate(now) + self._steal(now)

    def _at_home(self, event: Any, home: str, now: float) -> list[Action]:
        """Handle an event at its program's engine, which the program may leave first."""
        actions = list[Action]()
        if isinstance(event, StepReady):
            home, actions = self._route(event, home, now)
        if isinstance(event, StepReady | StepFinished | Forked):
            event = replace(event, engine=home)
        frees_tenant = self._frees_tenant(event)
        actions += self.engines[home].handle(event, now)
        if isinstance(event, ProgramEnded):
            del self._homes[event.program]
            self._assigned[home] -= self._sizes.pop(event.program)
        for name in self.engines if frees_tenant else (home,):
            if frees_tenant and name != home:
                actions += self.engines[name].rebalance(now)
            self._update_backlog(name)
        return actions

    def _frees_tenant(self, event: Any) -> bool:
        """Return True if programs of a limited tenant may now run at other engines."""
        if not isinstance(event, ProgramEnded | StepFinished):
            return False
        state = self.engines[self._homes[event.program]].state
        program = state.programs.get(event.program)
        return program is not None and state.tenants.of(program).limited

    def _update_backlog(self, name: str) -> None:
        waiting = self.engines[name].state.wait_queue.programs
        (self._backlog.add if waiting else self._backlog.discard)(name)

    # --- engines and what they share ------------------------------------------------------

    def _engine_up(self, event: EngineUp, now: float) -> list[Action]:
        if event.engine not in self.engines:
            shared_with = next((one.state for one in self.engines.values()), None)
            self.engines[event.engine] = Scheduler(self.policy, shared_with)
            self._assigned[event.engine] = 0
        return self.engines[event.engine].handle(event, now)

    def _at_engine(self, event: EngineDown | EngineDrain | Decoded, now: float) -> list[Action]:
        """Handle an event at the engine that it is about, if that is known."""
        scheduler = self.engines.get(event.engine)
        return [] if scheduler is None else scheduler.handle(event, now)

    def _shared(self, event: HostUp | HostState | TenantShare, now: float) -> list[Action]:
        """Apply an event about shared state once, then rebalance the other engines."""
        first, *others = self.engines.values()
        actions = first.handle(event, now)
        return actions + [action for other in others for action in other.rebalance(now)]

    @property
    def _open(self) -> list[str]:
        """Return the engines that take programs."""
        return [name for name, one in self.engines.items() if not one.state.closed]

    def _evacuate(self, now: float) -> list[Action]:
        """Move programs from engines that are down or drain; forget empty ones that are down."""
        actions, targets = list[Action](), self._open
        if not targets or len(targets) == len(self.engines):
            return actions
        for name in sorted(self.engines.keys() - targets):
            state = self.engines[name].state
            for program in list(state.wait_queue.programs.values()):
                if not program.running_steps:
                    actions += self._move(program, min(targets, key=self._load), now)
            if not state.engines and not state.programs:
                del self.engines[name], self._assigned[name]
                self._backlog.discard(name)
                state.tenants.unwatch(state.wait_queue.on_tenant_freed)
        return actions

    # --- where programs are ---------------------------------------------------------------

    def _choose_home(self, event: ProgramSubmitted) -> None:
        """Assign a new program to the engine with the fewest assigned tokens for its size."""
        if event.program in self._homes:
            return
        if not self.engines:
            raise EngineError(f"program {event.program} has nowhere to go: no engine is up")
        home = min(self._open or self.engines, key=self._assigned_share)
        state = self.engines[home].state
        peak = state.graph(event.agent).stats.mean_peak_tokens
        guess = event.expect_tokens or int(_GUESS * state.capacity)
        self._sizes[event.program] = guess if peak is None else peak
        self._homes[event.program] = home
        self._assigned[home] += self._sizes[event.program]

    def _assigned_share(self, name: str) -> float:
        return self._assigned[name] / max(1, self.engines[name].state.capacity)

    def _load(self, name: str) -> float:
        state = self.engines[name].state
        return state.totals.tokens / max(1, state.capacity)

    def _waiting(self, name: str) -> tuple[int, str]:
        return len(self.engines[name].state.wait_queue.programs), name

    def _route(self, event: StepReady, home: str, now: float) -> tuple[str, list[Action]]:
        """Return the engine for a call; if it is another than `home`, the program moves there."""
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
        """Move waiting programs to engines where none waits."""
        actions = list[Action]()
        if self.routing != "affine":
            return actions
        while self._backlog and (idle := set(self._open) - self._backlog):
            victim = max(self._backlog, key=self._waiting)
            program = self.engines[victim].state.wait_queue.first
            thief = min(idle, key=lambda name: (self._load(name), name))
            if program is None:
                break
            if not self.policy.would_admit(self.engines[thief].state, program):
                break
            actions += self._move(program, thief, now)
            if not program.active:
                break
        return actions

    def _move(self, program: ProgramState, target: str, now: float) -> list[Action]:
        source, name = self._homes[program.id], program.id
        self.moves += 1
        self._homes[name] = target
        self._assigned[source] -= self._sizes[name]
        self._assigned[target] += self._sizes[name]
        actions = list[Action]()
        has_kv = program.was_admitted and not program.kv_lost
        for conversation in program.conversations.values() if has_kv else ():
            if self.routing != "scatter" and program.steps:  # before its first call it has none
                actions.append(MoveKV(source, target, name, conversation.id))
            evict = self.policy.evict_at_end
            actions.append(ReleaseKV(source, name, conversation.id, evict))
        self.engines[source].withdraw(program)
        actions += self.engines[source].rebalance(now)
        actions += self.engines[target].accept(program, target, now)
        self._update_backlog(source)
        self._update_backlog(target)
        return actions


__all__ = ["ROUTING", "MultiEngineScheduler"]
