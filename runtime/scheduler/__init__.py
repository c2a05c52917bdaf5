"""The scheduler core: events in, actions out. No clock, no I/O, no tensor."""

from drawloom.runtime.scheduler.policies.registry import make_policy, policy_names
from drawloom.runtime.scheduler.policy import Policy
from drawloom.runtime.scheduler.scheduler import Scheduler

__all__ = ["Policy", "Scheduler", "make_policy", "policy_names"]
