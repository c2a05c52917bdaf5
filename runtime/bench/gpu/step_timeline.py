"""Begin and end of steps on the device, by its own clock."""

from itertools import pairwise
from types import TracebackType
from typing import Any

from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.runners.gpu_runner import GpuRunner


class Steps:
    """Notes steps while it is open.

    Attributes:
        idle: share of the time in which the device waited for a step although there was one to
            compute: somebody who was in the one before is in the one after. 0 on a CPU.
        milliseconds: of each step.
    """

    def __init__(self, core: EngineCore) -> None:
        runner = core._runner
        assert isinstance(runner, GpuRunner)
        self._runner = runner
        self.idle, self.milliseconds = 0.0, list[float]()

    def __enter__(self) -> "Steps":
        self._runner.trace = []
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        noted, self._runner.trace = self._runner.trace or [], None
        if not noted or error is not None:
            return
        noted[-1][1].synchronize()
        self.milliseconds = [_between(began, ended) for began, ended, _ in noted]
        waited = sum(
            max(0.0, _between(one[1], two[0])) for one, two in pairwise(noted) if one[2] & two[2]
        )
        self.idle = waited / (waited + sum(self.milliseconds))


def _between(first: Any, second: Any) -> float:
    milliseconds: float = first.elapsed_time(second)
    return milliseconds


__all__ = ["Steps"]
