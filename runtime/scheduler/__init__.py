"""The scheduler: events in, actions out. No clock, no I/O, no tensor.

May import the leaf and the graph. Policies (`policies/`) are made by name and handed to it.
"""

from drawloom.runtime.scheduler.policy import Policy
from drawloom.runtime.scheduler.scheduler import Scheduler

__all__ = ["Policy", "Scheduler"]
