"""The constants of the `drawloom` policy."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parameters:
    """Hold the constants of the parts of the policy, each with its reason."""

    # Admission. Memory that may be promised: blocks are never all usable, and with host memory
    # behind the device what is too much is copied, not lost.
    full: float = 0.95
    beyond: float = 0.3
    deviations: float = 1.0  # of the sum of peaks, to spare
    guess: float = 0.125  # of memory: the peak of a program of an unknown agent, or what it said
    believed: float = 2.0  # programs that such a guess counts for; the first to end are the short
    busy: float = 0.85  # of an engine's time: below, memory does not bound admission; -1: it does
    wide: int = 32  # calls at an engine, for agents that branch
    # Order.
    worth: float = 0.9  # of what a program takes, to be worth a look at it first
    raises: int = 2  # of its declared calls, after which a program is not believed
    # Residency. Leases last for the tools' 95th percentile, times `slack`, between bounds.
    slack: float = 1.5
    shortest: float = 1.0
    longest: float = 60.0
    unknown: float = 30.0
    absent: float = 2.0  # leases, after which a program that waits gives up its place
    # Bound.
    patience: float = 5.0  # times what its like take, waiting included, that one may be held
    patience_unknown: float = 600.0
    # Housing: claims until their rate is believed; claims come in bursts; of a pool.
    claims: int = 4
    ahead: float = 2.0
    reserve: float = 0.375
    # Tenants: programs that one may have ahead of another that waits.
    fair: float = 16.0


__all__ = ["Parameters"]
