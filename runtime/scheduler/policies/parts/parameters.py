"""Constants of the `drawloom` policy."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parameters:
    """Hold the constants of the policy's parts. docs/policy.md says what each is worth.

    Attributes:
        full: admission: share of memory that may be reserved; blocks are never all usable.
        beyond: admission: further share where host memory is behind the device, since KV beyond
            it is copied and not lost.
        deviations: admission: standard deviations of the sum of peaks to spare.
        guess: admission: share of memory that a program of an unknown agent peaks at, unless it
            declared its size.
        believed: admission: programs that such a guess counts for; the first to end are the short.
        busy: admission: share of the engine's time below which memory does not bound admission; -1
            is never.
        wide: admission: calls at an engine from which on programs that branch wait.
        worth: order: a probe must cost less than this share of running the program to its end.
        raises: order: raised declarations after which a program is not believed.
        slack: residency: leases last for the tools' 95th percentile times this.
        shortest: residency: seconds of the shortest lease.
        longest: residency: seconds of the longest lease.
        unknown: residency: seconds of a lease for tools of which nothing is known.
        absent: residency: leases after which an absent program is paused.
        patience: bound: a program may wait for this times its agent's mean time to the end.
        patience_unknown: bound: seconds, while no program has ended.
        claims: housing: claims of an environment before their rate is believed.
        ahead: housing: factor on the claims expected while one is made, as these come in bursts.
        reserve: housing: share of the pool that active programs' expected claims may take.
        fair: tenants: programs' mean service that a tenant may be ahead of another that waits.
    """

    full: float = 0.95
    beyond: float = 0.3
    deviations: float = 1.0
    guess: float = 0.125
    believed: float = 2.0
    busy: float = 0.85
    wide: int = 32
    worth: float = 0.9
    raises: int = 2
    slack: float = 1.5
    shortest: float = 1.0
    longest: float = 60.0
    unknown: float = 30.0
    absent: float = 2.0
    patience: float = 5.0
    patience_unknown: float = 600.0
    claims: int = 4
    ahead: float = 2.0
    reserve: float = 0.375
    fair: float = 16.0


__all__ = ["Parameters"]
