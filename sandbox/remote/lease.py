"""Leases of runtimes on sandbox hosts: their lengths, and why a lost call may run elsewhere.

A host holds a lease from each runtime, which is
renewed only by an answer to a beat and runs from the moment that beat was *sent*. Without one for
`lease` seconds it ends everything it runs for that runtime; the runtime waits longer than that
(`silence`) before it hands the work to another. A runtime that is known to be offline cannot hand
over anything, so meanwhile the broker's word that it has a beat renews the lease: its environments
stay, for it or its successor, until `orphans` seconds have passed.
"""

LEASE = 6.0  # seconds; beats come six times as often


def helper_ttl(lease: float) -> float:
    """Return the seconds without a word from the host after which its containers end."""
    return max(1.0, lease / 2)


def silence(lease: float) -> float:
    """Return the seconds without a word from a host after which nothing of ours runs there.

    They are its lease; then, if it was killed in the last moment of that, the time to live of its
    containers; and a margin.
    """
    return lease + helper_ttl(lease) + 1.0


__all__ = ["LEASE", "helper_ttl", "silence"]
