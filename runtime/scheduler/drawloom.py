"""`drawloom`: programs are admitted, ordered, kept and equipped as units.

Order: the program whose end costs least goes first: by the calls that it declared, and what
programs of so many took; else by the states in which its conversations are, where these have
predicted better than the service had, or are several, which are there to be counted; else by the
Gittins index of what programs of its agent took (seconds of the engine for each completion, given
what it has had); to the last two its first prompt, which has to be computed, is added. Where
programs of an agent show on their way how large they are, by the branches that they begin or by
what they declare anew, a new one is looked at first: it runs until then, in the memory that this
takes, at what looking at all and going on with the smallest costs for each that ends, and is held
again if it turns out that others should go before it. Of what looks alike the smaller prompt goes
first, then the earlier. Nobody waits for more than `_PATIENCE` times what its like take: then the
oldest goes first. A small program looks like all others before its first call, so a new one that
has waited for `_OVERDUE` times what its like take alone is tried, before its turn and in what
memory is free at the time: it is paused again after as many calls as the shortest of them made.
Between tenants service is shared by weight: none is admitted whose tenant has had more than that of
another that waits, by what `ahead` programs take. Admission: a program runs when its own KV at its
peak, as usual or as it was with the calls that it declared, fits beside those that run, with a
standard deviation of the sum to spare (Past-Future's idea of forecasting the peak, arXiv
2507.10150, over programs); a prefix that all share is counted once. With host memory behind the
device, where what is too much is lost to nobody, it is promised what it will hold on average from
now on, half way to its peak, and more run, by as much as those that run were seen to wait for
tools: then some KV is always out of the way. None is admitted while a call has given way to others
at the engine. Branches share their KV, so programs that have some wait while `_WIDE` calls run.
Pause: when what runs outgrows memory all the same, the last in order that waits for a tool is held
there; with host memory, a program at a tool boundary also makes room for one that costs a tenth of
it. Retention: at a tool boundary KV is leased for as long as the tools take to return at the 95th
percentile of what was observed (Continuum's idea, arXiv 2511.02230; leases here are soft, so the
time to live bounds waste and blocks nobody). What ends is dropped at once. Environments: as many
are kept ready as programs may claim, but not more than, at the rate of late, will be while others
are made.
"""

import math
from collections.abc import Iterator

from drawloom.events import StepReady, ToolReady
from drawloom.graph.execution import ExecutionGraph
from drawloom.runtime.scheduler.held import Held, Lane
from drawloom.runtime.scheduler.policy import Demote, Keep, Policy, Retention
from drawloom.runtime.scheduler.program import Lineage, Program, Rank
from drawloom.runtime.scheduler.world import World

_FULL, _LEAST, _SPARE = 0.95, 0.5, 1.5
_HOST = 0.6
_HALF_WAY = 0.5
_DEVIATIONS = 1.0
_CHEAPER = 0.1
_PATIENCE = 10.0
_OVERDUE, _LITTLE = 15.0, 0.25
_KNOWN = 20  # finished programs of an agent that say what its like take
_GUESS = 0.125
_WIDE = 32  # calls at an engine; 24 is as good, with 48 and 64 all slow each other down
_WORTH = 0.9  # of what a program takes, to be worth a look at it first
_SLACK = 1.5
_SHORTEST, _LONGEST, _UNKNOWN = 1.0, 60.0, 30.0
_CLASS, _TIE = 1e9, 1e-6
_CLAIMS, _AHEAD = 4, 2.0  # claims until their rate is believed; claims come in bursts
_RESERVE = 0.375  # of a pool; half hides 95 % of the making and idles, a quarter hides 90 %


class Drawloom(Policy):
    name = "drawloom"
    spill = True
    evict_at_end = True
    claim_early = True
    houses = True
    parks = True
    ahead = 16.0

    def order(self, program: Program) -> Rank:
        deadline = program.about.deadline
        late = 1e18 if deadline is None else deadline
        steps = program.expected or 0.0
        return -program.about.priority, late, steps, program.own, program.index

    def rank(self, world: World, program: Program) -> Rank:
        priority, deadline, _, size, index = self.order(program)
        return priority, deadline, self._cost(world, program), size, index

    def _cost(self, world: World, program: Program) -> float:
        """Seconds of the engine for each completion; 0 while nothing is known."""
        program.cost, _ = self._plan(world, program)
        if not program.begun and program.expected is None:
            lines = program.lineages.values()
            program.cost += sum(world.cost.recompute(line.own) for line in lines)
        return program.cost

    def _plan(self, world: World, program: Program) -> tuple[float, int]:
        """Seconds of the engine for each completion, its first prompt apart, and after how many of
        its calls it is decided whether it is gone on with; 0: it runs to its end."""
        graph = world.graph(program.about.agent)
        whole = self._whole(world, graph, program)
        if program.begun or len(program.lineages) > 1:
            return whole, 0
        declared = program.expected is not None
        look = graph.told if declared else graph.look
        cost = look.cost(whole if declared else 1.0)
        if cost is None or cost >= _WORTH * whole:
            return whole, 0
        return cost, look.calls

    def _whole(self, world: World, graph: ExecutionGraph, program: Program) -> float:
        """Seconds of the engine until its end: what a declared graph says is left, or the learned
        one where that has been right or several conversations are there to be counted; else for
        each completion, by what such programs took."""
        if program.expected is not None:
            return self._declared(world, graph, program, program.expected)
        counted = graph.informed or len(program.lineages) > 1
        known = graph.service_left(program.places) if counted else None
        if known is None:
            known = graph.seconds_per_completion(program.service)
        return known or 0.0

    def _declared(
        self, world: World, graph: ExecutionGraph, program: Program, calls: float
    ) -> float:
        """Seconds of the engine that are left of so many calls, its prompts included: by what
        programs of its agent took, with so many, if enough of them are known."""
        each, total = world.step_seconds(graph), graph.totals.at(calls)
        if total is None:
            return max(1.0, calls - program.steps) * each
        return max(1.0, total - program.service)

    # --- admission ------------------------------------------------------------------------

    def admit(self, world: World, now: float) -> Iterator[Program]:
        if world.pressed:
            return  # those that run have no room as it is
        while (program := self._next(world, now)) is not None:
            program.trial = self._plan(world, program)[1] if world.active else 0
            fits = not world.active or self._fits(world, program)
            if not fits or not self._housed(world, program, now):
                program.trial = 0
                break
            yield program
        while (program := self._overdue(world, now)) is not None:
            if not self._squeezes(world, program) or not self._housed(world, program, now):
                return
            program.trial = world.graph(program.about.agent).fewest
            yield program

    def _overdue(self, world: World, now: float) -> Program | None:
        """The oldest new program, if it has waited for so long that it would be slowed down out of
        all proportion, should it be a small one."""
        oldest = world.held.oldest_new
        if oldest is None:
            return None
        graph = world.graph(oldest.about.agent)
        if len(graph.calls) < _KNOWN or graph.usual_alone is None or graph.usual_peak is None:
            return None
        if oldest.own > _LITTLE * graph.usual_peak:  # its prompt alone is most of what it is
            return None
        return oldest if now - oldest.since > _OVERDUE * graph.usual_alone else None

    def _squeezes(self, world: World, program: Program) -> bool:
        """Whether it fits beside what runs as this is now, not as it will be, and those on trial
        are fewer than the others."""
        tried = sum(p.trial > 0 for p in world.active.values())
        room = (_FULL + self._beyond(world)) * world.capacity
        return 2 * tried < len(world.active) and world.own + program.own <= room

    def _next(self, world: World, now: float) -> Program | None:
        """The first, unless its tenant is too far ahead of another that waits."""
        first, needy = self._turn(world, world.held, now), world.held.neediest
        if first is None or needy is None:
            return first
        ahead = world.tenants.of(first).attained - needy.tenant.attained
        if ahead <= self.ahead * world.tenants.usual:
            return first
        other = self._turn(world, needy, now)
        behind = other is None or other.about.priority < first.about.priority
        return first if behind else other

    def _turn(self, world: World, held: Held | Lane, now: float) -> Program | None:
        """Of these the first, or the oldest when it has waited for too long."""
        oldest = held.oldest
        if oldest is not None:
            usual = world.graph(oldest.about.agent).usual_span
            if usual is not None and now - oldest.since > _PATIENCE * usual:
                return oldest
        return held.first

    def claim(self, world: World, program: Program) -> int:
        if program.trial:
            return program.own  # it is gone before it has grown
        seen, _ = self._peak(world, program)
        guess = program.about.expect_tokens or int(_GUESS * world.capacity)
        growth = max(0, (seen if seen is not None else guess) - program.own)
        return program.own + int(growth * (_HALF_WAY if world.host_tokens else 1.0))

    def _peak(self, world: World, program: Program) -> tuple[float | None, float]:
        """What it comes to, and how far others were from that: by the calls that it declared, or
        as usual."""
        graph, calls = world.graph(program.about.agent), program.expected
        seen = None if calls is None else graph.peaks.at(calls)
        return (graph.usual_peak, graph.peak_spread) if seen is None else (seen, graph.peaks.spread)

    def takes(self, world: World, program: Program) -> bool:
        return not world.active or self._fits(world, program)

    def _fits(self, world: World, program: Program) -> bool:
        """Whether one more does, should all together be a deviation above what is usual. Branches
        share their KV, so memory does not bound how many calls they make at a time."""
        graph = world.graph(program.about.agent)
        if graph.forks and world.calls >= _WIDE:
            return False
        _, spread = self._peak(world, program)
        margin = graph.shared + _DEVIATIONS * spread * (len(world.active) + 1) ** 0.5
        wanted = world.claimed + self.claim(world, program) + margin
        return bool(wanted <= (_FULL + self._beyond(world)) * world.capacity)

    def _housed(self, world: World, program: Program, now: float) -> bool:
        """Whether its environments can be there when its first tool asks for them. One that wants
        more than a host has gets a whole one."""
        envs, host = program.about.envs, world.places.roomiest
        if host is None:
            return all(self._equipped(world, program, env, now) for env in envs)
        if program.host is not None or not envs:
            return True
        return world.places.room(host) >= min(len(envs), world.places.slots[host])

    def _leaves_room(self, world: World, program: Program) -> bool:
        """Whether one that is paused makes room for environments, and no other is about to."""
        return program.host in world.places.parks and not world.places.leaving

    def _equipped(self, world: World, program: Program, env: str, now: float) -> bool:
        """Tell whether an environment is ready for one more program, or is being made: its first
        LLM call overlaps the rest of that, and holding it would hold all behind it too. Of those
        that each call has a fresh one of, one must be ready beside what the active programs will
        claim while others are made, as far as a third of the pool goes: start-up bandwidth is
        shared too. Where none can be made, do not wait."""
        places, host = world.places, world.places.hosts.get(env)
        if host is None:
            return False
        if not host.warm and not host.creating:
            return True
        spoken_for = places.promised.get(env, 0)
        if env not in program.about.fresh:
            return host.warm + host.creating > spoken_for
        rate = places.rates.get(env)
        if rate is not None:
            coming = math.ceil(rate.per_second(now) * host.cold)
            spoken_for += min(coming, int(_RESERVE * host.limit), places.wanted.get(env, 0) // 2)
        return host.warm > spoken_for

    def pause(self, world: World, now: float) -> Iterator[Program]:
        while self._overflows(world) and len(world.active) > 1:
            acting = [p for p in world.active.values() if p.acting and not p.trial]
            if not acting:
                return
            yield max(acting, key=lambda p: (-p.about.priority, p.cost, p.index))
        program, first = world.boundary, self._next(world, now)
        if program is not None and program.trial:
            yield from self._tried(world, program, first)
            return
        if program is None or first is None or not world.host_tokens:
            return
        if not program.acting or not program.active:
            return
        if not self._housed(world, first, now) and not self._leaves_room(world, program):
            return
        if world.resting + program.own > _HOST * world.host_tokens:
            return  # what rests would be lost, and computed again
        copying = 2 * world.cost.restore(program.own)
        if self._cost(world, first) + copying < _CHEAPER * self._cost(world, program):
            yield program

    def _tried(self, world: World, program: Program, first: Program | None) -> Iterator[Program]:
        """At its boundary: a trial ends, and its program stays only where it would be admitted."""
        early = program.steps < program.trial and program.shown is None
        if early or not (program.acting and program.active):
            return
        program.trial = 0
        if first is not None and (
            self._cost(world, first) < self._cost(world, program) or not self._fits(world, program)
        ):
            yield program
        else:
            world.reclaim(program, self.claim(world, program))

    def _overflows(self, world: World) -> bool:
        """Whether what runs has outgrown memory; with host memory its loss is cheap."""
        return world.own > (1.0 + self._beyond(world)) * world.capacity

    def _beyond(self, world: World) -> float:
        """The share of the device by which programs may exceed it: as much as they wait for tools,
        if host memory takes what waits."""
        return max(_LEAST, _SPARE * (1.0 - world.duty)) if world.host_tokens else 0.0

    def paused(self, world: World, program: Program, lineage: Lineage, now: float) -> Retention:
        return Demote() if world.host_tokens else None

    # --- order and retention --------------------------------------------------------------

    def priority(self, world: World, program: Program, step: StepReady, now: float) -> float:
        cost = -1.0 if program.trial else self._cost(world, program)
        cost += _TIE * program.index
        return cost - _CLASS * program.about.priority

    def tool(self, world: World, program: Program, event: ToolReady, now: float) -> float:
        """The shortest expected goes first."""
        usual = world.graph(program.about.agent).durations.quantile(event.tool, 0.5)
        return _UNKNOWN if usual is None else usual

    def retain(self, world: World, program: Program, lineage: Lineage, now: float) -> Retention:
        graph, key = world.graph(program.about.agent), lineage.waiting or ""
        late = graph.durations.quantile(key, 0.95)
        ttl = _UNKNOWN if late is None else min(_LONGEST, max(_SHORTEST, _SLACK * late))
        chance = 0.5 if late is None else graph.durations.chance_within(key, ttl)
        return Keep(ttl, chance * world.cost.recompute(lineage.context))

    def warm(self, world: World, env: str, now: float) -> int:
        """One for each that may claim one, but no more than will be claimed while as many are
        made, once it is known how often that is and how long making takes."""
        places, host = world.places, world.places.hosts.get(env)
        wanted, rate = places.wanted.get(env, 0), places.rates.get(env)
        if host is None:
            return wanted
        if rate is not None and rate.total >= _CLAIMS and host.cold:
            ahead = math.ceil(_AHEAD * rate.per_second(now) * host.cold) + 1
            wanted = min(wanted, places.promised.get(env, 0) + ahead)
        return min(host.limit, wanted)


__all__ = ["Drawloom"]
