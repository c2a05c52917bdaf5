"""Where environments are, and where there is room for more."""

from dataclasses import dataclass, field, replace

from drawloom.runtime.scheduler.decayed_rate import Rate
from drawloom.runtime.scheduler.events import HostState, HostUp
from drawloom.runtime.scheduler.program_state import ProgramState


@dataclass(slots=True)
class EnvCapacity:
    """Environments of programs on sandbox hosts, and what their pools have ready.

    Attributes:
        hosts: what a host has ready of each environment, by its key.
        demand: live programs that lack an environment, by its key.
        active_demand: of these, the active ones.
        slots: the environments that fit on each host; only of hosts that have a limit.
        used_slots: what takes room on each of these hosts.
        parking_hosts: those of them that can put an environment aside.
        paused_residents: held programs that have room on one of these hosts.
        targets: how many of each environment the pools were asked to have ready.
        rates: how often each is claimed.
        stale_targets: environments whose targets may be others since they were last worked out.
    """

    hosts: dict[str, HostState] = field(default_factory=dict)
    demand: dict[str, int] = field(default_factory=dict)
    active_demand: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    used_slots: dict[str, int] = field(default_factory=dict)
    parking_hosts: set[str] = field(default_factory=set)
    paused_residents: dict[str, ProgramState] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    rates: dict[str, Rate] = field(default_factory=dict)
    stale_targets: set[str] = field(default_factory=set)

    def up(self, host: HostUp) -> None:
        """A host is there, or has another limit now."""
        self.slots[host.host] = host.slots
        if host.parks:
            self.parking_hosts.add(host.host)

    @property
    def least_loaded_host(self) -> str | None:
        """The limited host with the most room left, should it be none or less."""
        return max(self.slots, key=self.free_slots, default=None)

    def free_slots(self, host: str) -> int:
        """The environments that still fit on a limited host."""
        return self.slots[host] - self.used_slots.get(host, 0)

    # --- a program's environments ---------------------------------------------------------

    def submit(self, program: ProgramState) -> None:
        """A new program lacks all of its environments."""
        for env in program.submission.envs:
            self.demand[env] = self.demand.get(env, 0) + 1
            self.stale_targets.add(env)

    def state(self, state: HostState) -> None:
        """A host has so many of an environment ready now."""
        self.hosts[state.env] = state
        self.stale_targets.add(state.env)

    def activate(self, program: ProgramState) -> None:
        """A held program is about to run: it is housed where most room is, if it was not."""
        self.paused_residents.pop(program.id, None)
        if (
            program.submission.envs
            and program.env_host is None
            and (host := self.least_loaded_host) is not None
        ):
            program.env_host = host
            self.used_slots[host] = self.used_slots.get(host, 0) + len(program.submission.envs)
        for env in program.submission.envs:
            if env not in program.envs:
                self.active_demand[env] = self.active_demand.get(env, 0) + 1
                self.stale_targets.add(env)

    def deactivate(self, program: ProgramState) -> None:
        """An active program no longer runs."""
        for env in program.submission.envs:
            if env not in program.envs:
                _decrement(self.active_demand, env)
                self.stale_targets.add(env)

    def hold(self, program: ProgramState) -> None:
        """A program that has run is held now."""
        if program.env_host is not None:
            self.paused_residents[program.id] = program

    def unhold(self, program: ProgramState) -> None:
        """It is on its way to another engine."""
        self.paused_residents.pop(program.id, None)

    def claim(self, program: ProgramState, env: str, now: float) -> None:
        """A program has its environment of this key; its host has one ready less. One that has a
        fresh one for each call goes on wanting them until its end."""
        if program.lacks_env(env):
            if env not in program.submission.fresh:
                _decrement(self.demand, env)
            if program.active:
                _decrement(self.active_demand, env)
        program.envs |= {env}
        self.stale_targets.add(env)
        self.rates.setdefault(env, Rate()).note(now)
        host = self.hosts.get(env)
        if host is not None:
            self.hosts[env] = replace(host, warm=max(0, host.warm - 1))

    def park(self, program: ProgramState) -> str | None:
        """Where a held program's environments can be put aside now, if anywhere; they no longer
        take room there."""
        host = program.env_host
        if not self._goes(program) or not program.quiescent:
            return None
        self._leave_host(program)
        for env in program.envs.difference(program.submission.fresh):
            self.demand[env] = self.demand.get(env, 0) + 1
            self.stale_targets.add(env)
        program.envs = frozenset()
        return host

    def end(self, program: ProgramState) -> None:
        """A program is over, whether it ran or not."""
        self._leave_host(program)
        for env in program.submission.envs:
            if env not in program.envs or env in program.submission.fresh:
                _decrement(self.demand, env)
                self.stale_targets.add(env)
            if env not in self.demand:
                self.rates.pop(env, None)

    def _leave_host(self, program: ProgramState) -> None:
        if program.env_host is not None:
            self.used_slots[program.env_host] -= len(program.submission.envs)
            self.paused_residents.pop(program.id, None)
            program.env_host = None

    def _goes(self, program: ProgramState) -> bool:
        return program.env_host in self.parking_hosts and program.begun and not program.active


def _decrement(counts: dict[str, int], key: str) -> None:
    """Keys leave with their last one, so that what ended costs nothing."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


__all__ = ["EnvCapacity"]
