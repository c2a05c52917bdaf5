"""Policies by name: `drawloom`, which is composed of parts, and its rivals, one file each.

May import the scheduler.
"""

from drawloom.runtime.scheduler.policies.registry import make_policy, policy_names

__all__ = ["make_policy", "policy_names"]
