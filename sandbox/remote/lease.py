"""How long a host that lost its runtime works on, and when the runtime may count on its end.

What makes it safe to run a lost call elsewhere: a host holds a lease from each runtime, which is
renewed only by an answer to a beat and runs from the moment that beat was *sent*. Without one for
`lease` seconds it ends everything it runs for that runtime; the runtime waits longer than that
(`silence`) before it hands the work to another. A runtime that is known to be offline cannot hand
over anything, so meanwhile the broker's word that it has a beat renews the lease: its environments
stay, for it or its successor, until `orphans` seconds have passed.
"""

LEASE = 6.0  # seconds; beats come six times as often


def helper_ttl(lease: float) -> float:
    """After how many seconds without a word from the host its containers end by themselves."""
    return max(1.0, lease / 2)


def silence(lease: float) -> float:
    """Seconds without a word from a host after which nothing it was asked to do is running: its own
    lease, then, if it was killed in the last moment of that, its containers', and a margin."""
    return lease + helper_ttl(lease) + 1.0


__all__ = ["LEASE", "helper_ttl", "silence"]
