"""KV, environments and tool slots as one unit, beside schedulers whose pool is a thing apart.

A sandbox host has room for the environments of a third of the programs in flight and tool slots
for a fifth of them. Under a rival its pool serves claims in their order, made at submission, at
admission or by the first tool, whichever is best for that rival. `drawloom` admits a program when
there is room for its KV and its environment, has the environment made meanwhile, puts it aside
together with the KV of a program that it pauses, and runs the tools that end soon first. Each of
its variants lacks one of these.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace

from drawloom.errors import ConfigError, EngineError
from drawloom.runtime.scheduler import Policy
from drawloom.runtime.scheduler.events import ToolReady
from drawloom.runtime.scheduler.policies import make_policy, policy_names
from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState
from drawloom.runtime.sim.experiment import Scenario
from drawloom.runtime.sim.oracle import Clairvoyant
from drawloom.runtime.sim.report import figures
from drawloom.runtime.sim.sim_host import CLAIMS, Rooms
from drawloom.runtime.sim.sim_program import Outcome
from drawloom.runtime.sim.simulation import Simulation

_SLOTS, _TOOLS = 1 / 3, 1 / 5
_CAPS = (0.2, 0.25, 0.33, 0.4, 0.55)


class _AnyRoom(Drawloom):
    """Claim environments by the first tool instead of at admission."""

    name = "drawloom, environments apart"
    claims_early = False


class _FirstTool(Drawloom):
    name = "drawloom, tools by arrival"

    def tool_priority(
        self, state: SchedulerState, program: ProgramState, event: ToolReady, now: float
    ) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class _Try:
    """A policy with a pool that claims by a rule; without `parks` nothing is put aside."""

    row: str
    policy: str
    claims: str = "first"
    parks: bool = True


_VARIANTS: dict[str, type[Policy]] = {kind.name: kind for kind in (_AnyRoom, _FirstTool)}


def _tries(scenario: Scenario) -> list[_Try]:
    there = scenario.there()
    found = [
        _Try("drawloom", "drawloom"),
        _Try("drawloom, nothing put aside", "drawloom", parks=False),
        *(_Try(name, name) for name in _VARIANTS),
    ]
    caps = sorted({f"static-cap:{max(1, round(share * there))}" for share in _CAPS})
    for policy in policy_names():
        if policy in ("drawloom", "cap-order"):
            continue
        for name in caps if policy == "static-cap" else [policy]:
            found += [_Try(policy, name, claims) for claims in CLAIMS]
    return [*found, *(_Try(Clairvoyant.name, Clairvoyant.name, claims) for claims in CLAIMS)]


def _run(scenario: Scenario, one: _Try, seed: int) -> Outcome | None:
    """None when a program never ends: each place is taken for one that the policy holds, and each
    one that it lets run waits for a place."""
    engine, drawn = scenario.engine(), scenario.draw(seed)
    slots, tools = (max(1, round(share * scenario.there())) for share in (_SLOTS, _TOOLS))
    rooms = Rooms(slots, tools, claims=one.claims)
    if not one.parks:
        rooms = replace(rooms, park=None)
    if one.policy == Clairvoyant.name:
        policy: Policy = Clairvoyant(drawn, engine.cost)
    else:
        policy = _VARIANTS[one.policy]() if one.policy in _VARIANTS else make_policy(one.policy)
    try:
        return Simulation(engine, policy, drawn, scenario.host, rooms=rooms).run()
    except EngineError:
        return None


def compare_units(
    scenario: Scenario, progress: Callable[[str, float], None] = lambda row, seconds: None
) -> dict[str, dict[str, float]]:
    """The figures of `drawloom`, of it without each of its parts, of every rival with the pool
    that suits it best, and of the clairvoyant with that. Raises `ConfigError`."""
    jobs = scenario.population()
    if not all(job.env for job in jobs):
        raise ConfigError(
            f"{scenario.workload} does not say what its environments take to start; choose a trace "
            "that does, as swe-docker"
        )
    alone, found = scenario.alone(), dict[str, dict[str, float]]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs: list[tuple[_Try, list[Future[Outcome | None]]]] = [
            (one, [pool.submit(_run, scenario, one, seed) for seed in scenario.draws])
            for one in _tries(scenario)
        ]
        for one, several in runs:
            outcomes = [done for run in several if (done := run.result()) is not None]
            ended = len(outcomes) == scenario.seeds
            row = _row(outcomes, alone) if ended else {"jct_mean_s": math.inf}
            progress(f"{one.policy} ({one.claims})", row["jct_mean_s"])
            if not ended:
                continue
            best = found.get(one.row)
            if best is None or row["jct_mean_s"] < best["jct_mean_s"]:
                found[one.row] = row
    return found


def _row(outcomes: Sequence[Outcome], alone: dict[str, float]) -> dict[str, float]:
    hosts = [outcome.host for outcome in outcomes if outcome.host is not None]
    row = figures(outcomes, alone)
    for key in ("stall", "queued", "taken", "ran"):
        total = sum(float(getattr(host, key)) for host in hosts)
        row[f"env_{key}_s"] = total / max(1.0, row["programs"])
    return row


__all__ = ["compare_units"]
