"""The scheduler core: events in, actions out. No clock, no I/O, no tensor."""

from drawloom.runtime.scheduler.core import Scheduler
from drawloom.runtime.scheduler.policy import Policy
from drawloom.runtime.scheduler.registry import make_policy, policy_names

__all__ = ["Policy", "Scheduler", "make_policy", "policy_names"]
