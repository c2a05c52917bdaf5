"""Which of several tilings of a kernel is used: the first, unless another was faster here.

What is best depends on the chip, on the heads of the model and on the compiler. All tilings compute
the same and are compiled ahead in the tests; on a GPU, the runner times them when it starts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from drawloom.engine.kernels.gpu_arch import HOPPER, capability

_TRIES, _IN_A_ROW = 5, 8


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


Key = tuple[int, ...]


class Tilings:
    """The tilings of one kernel, and which one is used for heads, key heads, depth, and whatever
    else the kernel tells apart."""

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
# the quickest of 36 on an H200: the first two for few sequences, the last for many equal ones
DECODE = Tilings(
    Tiling(16, 64, 2, 3), Tiling(16, 128, 4, 3), Tiling(16, 64, 4, 2), Tiling(16, 64, 4, 3),
    Tiling(16, 32, 2, 2),
)  # fmt: skip


def seconds_on_gpu(work: Callable[[], object]) -> float:
    """By the device's clock, the least of several tries, each of some in a row as a graph: what
    launching takes would hide which is the faster. What is compiled first does not count."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_IN_A_ROW):
            work()
    best = float("inf")
    for _ in range(_TRIES):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        best = min(best, began.elapsed_time(ended) / 1000)
    return best / _IN_A_ROW


__all__ = ["DECODE", "PREFILL", "Key", "Tiling", "Tilings", "seconds_on_gpu"]
