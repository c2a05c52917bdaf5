"""The scheduler: events in, actions out. No clock, no I/O, no tensor.

`events.py` and `actions.py` are its protocol, `scheduler.py` its entry, `policy.py` the seam of
policies, `policies/` the policies by name. May import the leaf and the graph.
"""

from drawloom.runtime.scheduler.policy import Policy
from drawloom.runtime.scheduler.scheduler import Scheduler

__all__ = ["Policy", "Scheduler"]
