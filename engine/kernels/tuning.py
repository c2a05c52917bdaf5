"""Which of several tilings of a kernel is used: the first, unless another was faster here.

What is best depends on the chip, on the heads of the model and on the compiler. All tilings compute
the same and are compiled ahead in the tests; on a GPU, the runner times them when it starts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from drawloom.engine.kernels.chip import HOPPER, capability

_TRIES = 10


@dataclass(frozen=True, slots=True)
class Tiling:
    """Rows of queries and keys of a tile, and how many warps and stages compute it; for chips from
    `least` to below `below`."""

    rows: int
    keys: int
    warps: int
    stages: int
    least: int = 0
    below: int = 1000


Key = tuple[int, int, int]


class Tilings:
    """The tilings of one kernel, and which one is used for heads, key heads and depth."""

    def __init__(self, *options: Tiling) -> None:
        self._all = options
        self._chosen: dict[tuple[int, Key], Tiling] = {}

    @property
    def options(self) -> list[Tiling]:
        """Those that this chip can have."""
        chip = capability()
        return [o for o in self._all if o.least <= chip < o.below]

    def of(self, key: Key) -> Tiling:
        return self._chosen.get((capability(), key)) or self.options[0]

    def use(self, key: Key, tiling: Tiling) -> None:
        self._chosen[capability(), key] = tiling

    def tune(self, key: Key, work: Callable[[], object], seconds: Callable[..., float]) -> None:
        """Use whichever does `work` in the fewest `seconds`. One that cannot run is passed over."""
        times: dict[Tiling, float] = {}
        for option in self.options:
            self.use(key, option)
            try:
                times[option] = seconds(work)
            except Exception:
                continue  # more shared memory than this chip has, say
        self.use(key, min(times, key=lambda o: times[o]) if times else self.options[0])


# a Hopper multiplies by warpgroups of 64 rows; an older chip keeps more of a tile in registers, and
# 128 rows would be spilled (`drawloom bench kernels`)
PREFILL = Tilings(
    Tiling(128, 64, 8, 3, least=HOPPER),
    Tiling(128, 128, 8, 3, least=HOPPER),
    Tiling(64, 64, 4, 3, least=HOPPER),
    Tiling(64, 32, 4, 3, below=HOPPER),
)
# the block table is read a stage before the keys are: 5 stages have two tiles of keys under way
DECODE = Tilings(
    Tiling(16, 64, 4, 3), Tiling(16, 64, 4, 5), Tiling(16, 128, 4, 3), Tiling(16, 32, 4, 5),
    Tiling(16, 64, 2, 3),
)  # fmt: skip


def seconds_on_gpu(work: Callable[[], object]) -> float:
    """The least seconds of several tries; what is compiled first does not count."""
    best = float("inf")
    for turn in range(_TRIES + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - began)
    return best


__all__ = ["DECODE", "PREFILL", "Key", "Tiling", "Tilings", "seconds_on_gpu"]
