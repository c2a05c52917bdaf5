"""Where environments are, and where there is room for more."""

from dataclasses import dataclass, field, replace

from drawloom.runtime.scheduler.decayed_rate import Rate
from drawloom.runtime.scheduler.events import HostState, HostUp
from drawloom.runtime.scheduler.program_state import ProgramState


@dataclass(slots=True)
class Places:
    """Environments of programs on sandbox hosts, and what their pools have ready.

    Attributes:
        hosts: what a host has ready of each environment, by its key.
        wanted: live programs that lack an environment, by its key.
        promised: of these, the active ones.
        slots: the environments that fit on each host; only of hosts that have a limit.
        housed: what takes room on each of these hosts.
        parks: those of them that can put an environment aside.
        resting: held programs that have room on one of these hosts.
        targets: how many of each environment the pools were asked to have ready.
        rates: how often each is claimed.
        changed: environments whose targets may be others since they were last worked out.
    """

    hosts: dict[str, HostState] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)
    promised: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    housed: dict[str, int] = field(default_factory=dict)
    parks: set[str] = field(default_factory=set)
    resting: dict[str, ProgramState] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    rates: dict[str, Rate] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    def up(self, host: HostUp) -> None:
        """A host is there, or has another limit now."""
        self.slots[host.host] = host.slots
        if host.parks:
            self.parks.add(host.host)

    @property
    def roomiest(self) -> str | None:
        """The limited host with the most room left, should it be none or less."""
        return max(self.slots, key=self.room, default=None)

    def room(self, host: str) -> int:
        """The environments that still fit on a limited host."""
        return self.slots[host] - self.housed.get(host, 0)

    # --- a program's environments ---------------------------------------------------------

    def submit(self, program: ProgramState) -> None:
        """A new program lacks all of its environments."""
        for env in program.about.envs:
            self.wanted[env] = self.wanted.get(env, 0) + 1
            self.changed.add(env)

    def state(self, state: HostState) -> None:
        """A host has so many of an environment ready now."""
        self.hosts[state.env] = state
        self.changed.add(state.env)

    def activate(self, program: ProgramState) -> None:
        """A held program is about to run: it is housed where most room is, if it was not."""
        self.resting.pop(program.id, None)
        if program.about.envs and program.host is None and (host := self.roomiest) is not None:
            program.host = host
            self.housed[host] = self.housed.get(host, 0) + len(program.about.envs)
        for env in program.about.envs:
            if env not in program.envs:
                self.promised[env] = self.promised.get(env, 0) + 1
                self.changed.add(env)

    def deactivate(self, program: ProgramState) -> None:
        """An active program no longer runs."""
        for env in program.about.envs:
            if env not in program.envs:
                _one_less(self.promised, env)
                self.changed.add(env)

    def hold(self, program: ProgramState) -> None:
        """A program that has run is held now."""
        if program.host is not None:
            self.resting[program.id] = program

    def unhold(self, program: ProgramState) -> None:
        """It is on its way to another engine."""
        self.resting.pop(program.id, None)

    def took(self, program: ProgramState, env: str, now: float) -> None:
        """A program has its environment of this key; its host has one ready less. One that has a
        fresh one for each call goes on wanting them until its end."""
        if program.lacks(env):
            if env not in program.about.fresh:
                _one_less(self.wanted, env)
            if program.active:
                _one_less(self.promised, env)
        program.envs |= {env}
        self.changed.add(env)
        self.rates.setdefault(env, Rate()).note(now)
        host = self.hosts.get(env)
        if host is not None:
            self.hosts[env] = replace(host, warm=max(0, host.warm - 1))

    def park(self, program: ProgramState) -> str | None:
        """Where a held program's environments can be put aside now, if anywhere; they no longer
        take room there."""
        host = program.host
        if not self._goes(program) or not program.idle:
            return None
        self._leave_host(program)
        for env in program.envs.difference(program.about.fresh):
            self.wanted[env] = self.wanted.get(env, 0) + 1
            self.changed.add(env)
        program.envs = frozenset()
        return host

    def end(self, program: ProgramState) -> None:
        """A program is over, whether it ran or not."""
        self._leave_host(program)
        for env in program.about.envs:
            if env not in program.envs or env in program.about.fresh:
                _one_less(self.wanted, env)
                self.changed.add(env)
            if env not in self.wanted:
                self.rates.pop(env, None)

    def _leave_host(self, program: ProgramState) -> None:
        if program.host is not None:
            self.housed[program.host] -= len(program.about.envs)
            self.resting.pop(program.id, None)
            program.host = None

    def _goes(self, program: ProgramState) -> bool:
        return program.host in self.parks and program.begun and not program.active


def _one_less(counts: dict[str, int], key: str) -> None:
    """Keys leave with their last one, so that what ended costs nothing."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


__all__ = ["Places"]
