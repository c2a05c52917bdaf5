"""`cap-order:N`: `drawloom`'s order alone, with a fixed number of programs.

At most N programs run at a time, in `drawloom`'s order at admission and at the engine. It shows
what that order is worth, with the best N known beforehand.
"""

from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.policies.parts.admission import Cap
from drawloom.runtime.scheduler.policies.parts.bound import Bound
from drawloom.runtime.scheduler.policies.parts.residency import Residency


class CapOrder(Drawloom):
    """Run a fixed number of programs in `drawloom`'s order."""

    name = "cap-order"

    def __init__(self, programs: float = 16) -> None:
        if programs < 1:
            raise ValueError(programs)
        super().__init__(admission=Cap(int(programs)), residency=Residency(), bound=Bound())
        self.name = f"cap-order:{int(programs)}"


__all__ = ["CapOrder"]
