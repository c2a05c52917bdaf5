"""Mean of a stream of values, in which newer ones count more."""


class RunningMean:
    """Keep an exponentially weighted mean.

    Args:
        weight: weight of a new value, between 0 and 1.
        warm_up: weigh the first ``1 / weight`` values alike, as a plain mean does. Without it, the
            first value alone starts the mean.

    Attributes:
        value: the mean; None before the first value.
    """

    __slots__ = ("_count", "_warm_up", "_weight", "value")

    def __init__(self, weight: float = 0.05, warm_up: bool = False) -> None:
        self._weight, self._warm_up = weight, warm_up
        self._count = 0
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Add a value."""
        self._count += 1
        if self.value is None:
            self.value = value
            return
        weight = max(1 / self._count, self._weight) if self._warm_up else self._weight
        self.value += weight * (value - self.value)


__all__ = ["RunningMean"]
