"""Capacity of sandbox hosts, and the environments of programs on them."""

from dataclasses import dataclass, field, replace

from drawloom.runtime.scheduler.decayed_rate import DecayedRate
from drawloom.runtime.scheduler.events import HostState, HostUp
from drawloom.runtime.scheduler.program_state import Phase, ProgramState


@dataclass(slots=True)
class EnvCapacity:
    """Count environments by key and by host.

    Attributes:
        hosts: warm environments of each key, as its host reported last.
        demand: programs that lack an environment, by its key.
        active_demand: those of them that are active.
        slots: environments that fit on each host; only of hosts that have a limit.
        used_slots: slots of these hosts that programs take.
        parking_hosts: those of them that can park environments.
        paused_residents: paused programs that take slots, by name.
        targets: warm environments that the pools were asked to keep, by key.
        rates: rates at which environments are claimed, by key.
        stale_targets: keys whose target may have to change.
    """

    hosts: dict[str, HostState] = field(default_factory=dict)
    demand: dict[str, int] = field(default_factory=dict)
    active_demand: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    used_slots: dict[str, int] = field(default_factory=dict)
    parking_hosts: set[str] = field(default_factory=set)
    paused_residents: dict[str, ProgramState] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    rates: dict[str, DecayedRate] = field(default_factory=dict)
    stale_targets: set[str] = field(default_factory=set)

    # --- hosts ----------------------------------------------------------------------------

    def host_up(self, host: HostUp) -> None:
        """Count a host, or change its limit."""
        self.slots[host.host] = host.slots
        if host.parks:
            self.parking_hosts.add(host.host)

    def host_changed(self, report: HostState) -> None:
        """Take in a host's report of its warm environments of one key."""
        self.hosts[report.env] = report
        self.stale_targets.add(report.env)

    @property
    def least_loaded_host(self) -> str | None:
        """Return the limited host with the most free slots, possibly below 0; None without any."""
        return max(self.slots, key=self.free_slots, default=None)

    def free_slots(self, host: str) -> int:
        """Return the environments that still fit on a limited host."""
        return self.slots[host] - self.used_slots.get(host, 0)

    # --- a program's environments ---------------------------------------------------------

    def submit(self, program: ProgramState) -> None:
        """Count a new program, which lacks all of its environments."""
        for env in program.submission.envs:
            self.demand[env] = self.demand.get(env, 0) + 1
            self.stale_targets.add(env)

    def activate(self, program: ProgramState) -> None:
        """Count a program that becomes active, and give it slots on a host if it has none."""
        self.paused_residents.pop(program.id, None)
        envs = program.submission.envs
        if envs and program.env_host is None and (host := self.least_loaded_host) is not None:
            program.env_host = host
            self.used_slots[host] = self.used_slots.get(host, 0) + len(envs)
        for env in envs:
            if env not in program.envs:
                self.active_demand[env] = self.active_demand.get(env, 0) + 1
                self.stale_targets.add(env)

    def deactivate(self, program: ProgramState) -> None:
        """Count a program that is no longer active."""
        for env in program.submission.envs:
            if env not in program.envs:
                _decrement(self.active_demand, env)
                self.stale_targets.add(env)

    def pause(self, program: ProgramState) -> None:
        """Count a paused program; it keeps its slots."""
        if program.env_host is not None:
            self.paused_residents[program.id] = program

    def withdraw(self, program: ProgramState) -> None:
        """Stop counting a paused program as waiting, since it moves to another engine."""
        self.paused_residents.pop(program.id, None)

    def claim(self, program: ProgramState, env: str, now: float) -> None:
        """Count an environment that a program claims; its host has a warm one less.

        A program that has a fresh one for each call lacks one until its end.
        """
        if program.lacks_env(env):
            if env not in program.submission.fresh:
                _decrement(self.demand, env)
            if program.active:
                _decrement(self.active_demand, env)
        program.envs |= {env}
        self.stale_targets.add(env)
        self.rates.setdefault(env, DecayedRate()).record(now)
        host = self.hosts.get(env)
        if host is not None:
            self.hosts[env] = replace(host, warm=max(0, host.warm - 1))

    def park(self, program: ProgramState) -> str | None:
        """Give up the slots of a paused program, if its host can park its environments now.

        Returns:
            The host; None if nothing can be parked.
        """
        host = program.env_host
        parkable = host in self.parking_hosts and program.phase is Phase.PAUSED
        if not parkable or not program.quiescent:
            return None
        self._free_slots_of(program)
        for env in program.envs.difference(program.submission.fresh):
            self.demand[env] = self.demand.get(env, 0) + 1
            self.stale_targets.add(env)
        program.envs = frozenset()
        return host

    def end(self, program: ProgramState) -> None:
        """Forget a program that has ended."""
        self._free_slots_of(program)
        for env in program.submission.envs:
            if env not in program.envs or env in program.submission.fresh:
                _decrement(self.demand, env)
                self.stale_targets.add(env)
            if env not in self.demand:
                self.rates.pop(env, None)

    def _free_slots_of(self, program: ProgramState) -> None:
        if program.env_host is not None:
            self.used_slots[program.env_host] -= len(program.submission.envs)
            self.paused_residents.pop(program.id, None)
            program.env_host = None


def _decrement(counts: dict[str, int], key: str) -> None:
    """Decrement a count, and remove its key at zero, so that ended programs cost nothing."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


__all__ = ["EnvCapacity"]
