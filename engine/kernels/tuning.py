"""Choice among the tilings of a kernel: the first, unless another was measured to be faster.

The best tiling depends on the chip, the heads of the model and the compiler. All tilings compute
the same, and tests compile them ahead of time; on a GPU, the runner times them when it starts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from drawloom.engine.kernels.gpu_arch import HOPPER, capability

_TRIES, _IN_A_ROW = 5, 8


@dataclass(frozen=True, slots=True)
class Tiling:
    """Describe a tile of attention and how it is computed.

    Attributes:
        rows: rows of queries.
        keys: keys of one iteration.
        warps: warps of a program.
        stages: software pipelining stages.
        least: compute capability of the oldest chip that it is for.
        below: compute capability of the first chip that it is not for.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    least: int = 0
    below: int = 1000


Key = tuple[int, ...]


class Tilings:
    """Keep the tilings of one kernel and the one chosen for each key.

    A key is heads, key heads, depth, and what else the kernel distinguishes.
    """

    def __init__(self, *options: Tiling) -> None:
        self._all = options
        self._chosen: dict[tuple[int, Key], Tiling] = {}

    @property
    def options(self) -> list[Tiling]:
        """Return the tilings for this chip."""
        chip = capability()
        return [o for o in self._all if o.least <= chip < o.below]

    def of(self, key: Key) -> Tiling:
        """Return the tiling to use."""
        return self._chosen.get((capability(), key)) or self.options[0]

    def use(self, key: Key, tiling: Tiling) -> None:
        """Choose a tiling for this chip."""
        self._chosen[capability(), key] = tiling

    def tune(self, key: Key, work: Callable[[], object], seconds: Callable[..., float]) -> None:
        """Choose the tiling with the fewest `seconds` of `work`; skip those that cannot run."""
        times: dict[Tiling, float] = {}
        for option in self.options:
            self.use(key, option)
            try:
                times[option] = seconds(work)
            except Exception:
                continue  # it needs more shared memory than this chip has, for example
        self.use(key, min(times, key=lambda o: times[o]) if times else self.options[0])


# Hopper multiplies by warpgroups of 64 rows; an older chip keeps more of a tile in registers, and
# would spill 128 rows (`drawloom bench kernels`)
PREFILL = Tilings(
    Tiling(128, 64, 8, 3, least=HOPPER),
    Tiling(128, 128, 8, 3, least=HOPPER),
    Tiling(64, 64, 4, 3, least=HOPPER),
    Tiling(64, 32, 4, 3, below=HOPPER),
)
# the fastest of 36 on an H200: the first two for few sequences, the last for many equal ones
DECODE = Tilings(
    Tiling(16, 64, 2, 3),
    Tiling(16, 128, 4, 3),
    Tiling(16, 64, 4, 2),
    Tiling(16, 64, 4, 3),
    Tiling(16, 32, 2, 2),
)


def seconds_on_gpu(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes by the device's clock, the best of several tries.

    Each try replays several in a row as a graph, because launch latency would hide the difference
    between kernels. Compilation is not counted.
    """
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
