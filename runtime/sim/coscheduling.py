"""KV, environments and tool slots scheduled as one unit, beside schedulers with a separate pool.

A sandbox host has slots for the environments of a third of the programs in flight and tool slots
for a fifth of them. Under a rival, its pool serves claims in their order, made at submission, at
admission or by the first tool, whichever is best for that rival. `drawloom` admits a program when
there is capacity for its KV and its environment, has the environment made meanwhile, parks it
together with the KV of a program that it pauses, and runs the tools first that end soon. Each of
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
from drawloom.runtime.sim.sim_host import CLAIMS, SandboxSpec
from drawloom.runtime.sim.sim_program import Outcome
from drawloom.runtime.sim.simulation import Simulation

_SLOTS, _TOOLS = 1 / 3, 1 / 5
_CAPS = (0.2, 0.25, 0.33, 0.4, 0.55)


class _EnvsByFirstTool(Drawloom):
    """Claim environments by the first tool instead of at admission."""

    name = "drawloom, environments apart"
    claims_early = False


class _FirstTool(Drawloom):
    """Run tools in order of arrival."""

    name = "drawloom, tools by arrival"

    def tool_priority(
        self, state: SchedulerState, program: ProgramState, event: ToolReady, now: float
    ) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class _Trial:
    """Combine a policy with a pool.

    Attributes:
        row: of the table that the result belongs to.
        policy: its name.
        claims: when the pool claims environments (`SandboxSpec`).
        parks: the host can park environments.
    """

    row: str
    policy: str
    claims: str = "first"
    parks: bool = True


_VARIANTS: dict[str, type[Policy]] = {kind.name: kind for kind in (_EnvsByFirstTool, _FirstTool)}


def _trials(scenario: Scenario) -> list[_Trial]:
    in_flight = scenario.in_flight()
    found = [
        _Trial("drawloom", "drawloom"),
        _Trial("drawloom, nothing parked", "drawloom", parks=False),
        *(_Trial(name, name) for name in _VARIANTS),
    ]
    caps = sorted({f"static-cap:{max(1, round(share * in_flight))}" for share in _CAPS})
    for policy in policy_names():
        if policy in ("drawloom", "cap-order"):
            continue
        for name in caps if policy == "static-cap" else [policy]:
            found += [_Trial(policy, name, claims) for claims in CLAIMS]
    return [*found, *(_Trial(Clairvoyant.name, Clairvoyant.name, claims) for claims in CLAIMS)]


def _run(scenario: Scenario, one: _Trial, seed: int) -> Outcome | None:
    """Simulate one seed.

    Returns:
        None when a program never ends: each slot is taken for a program that the policy holds, and
        each program that it lets run waits for a slot.
    """
    engine, drawn = scenario.engine(), scenario.draw(seed)
    slots, tools = (max(1, round(share * scenario.in_flight())) for share in (_SLOTS, _TOOLS))
    sandbox = SandboxSpec(slots, tools, claims=one.claims)
    if not one.parks:
        sandbox = replace(sandbox, park=None)
    if one.policy == Clairvoyant.name:
        policy: Policy = Clairvoyant(drawn, engine.cost)
    else:
        policy = _VARIANTS[one.policy]() if one.policy in _VARIANTS else make_policy(one.policy)
    try:
        return Simulation(engine, policy, drawn, scenario.host, sandbox=sandbox).run()
    except EngineError:
        return None


def compare_units(
    scenario: Scenario, progress: Callable[[str, float], None] = lambda row, seconds: None
) -> dict[str, dict[str, float]]:
    """Compare `drawloom`, its variants, every rival with its best pool, and the clairvoyant.

    Args:
        scenario: workload and machine.
        progress: called with the name and the mean JCT of each trial.

    Returns:
        The figures of each row.

    Raises:
        ConfigError: the workload does not say what its environments take to start.
    """
    jobs = scenario.population()
    if not all(job.env for job in jobs):
        raise ConfigError(
            f"{scenario.workload} does not say what its environments take to start; choose a trace "
            "that does, as swe-docker"
        )
    isolated, found = scenario.isolated_seconds(), dict[str, dict[str, float]]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs: list[tuple[_Trial, list[Future[Outcome | None]]]] = [
            (one, [pool.submit(_run, scenario, one, seed) for seed in scenario.draws])
            for one in _trials(scenario)
        ]
        for one, several in runs:
            outcomes = [done for run in several if (done := run.result()) is not None]
            ended = len(outcomes) == scenario.seeds
            row = _row(outcomes, isolated) if ended else {"jct_mean_s": math.inf}
            progress(f"{one.policy} ({one.claims})", row["jct_mean_s"])
            if not ended:
                continue
            best = found.get(one.row)
            if best is None or row["jct_mean_s"] < best["jct_mean_s"]:
                found[one.row] = row
    return found


def _row(outcomes: Sequence[Outcome], isolated: dict[str, float]) -> dict[str, float]:
    hosts = [outcome.host for outcome in outcomes if outcome.host is not None]
    row = figures(outcomes, isolated)
    for key in ("stall", "queued", "taken", "ran"):
        total = sum(float(getattr(host, key)) for host in hosts)
        row[f"env_{key}_s"] = total / max(1.0, row["programs"])
    return row


__all__ = ["compare_units"]
