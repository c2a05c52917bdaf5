"""What a graph foretold, beside what then happened."""

from dataclasses import dataclass

from drawloom.graph.forecast import Forecast


@dataclass(slots=True)
class Calibration:
    """Of the returns from one tool (or several at once). A forecast that is right has half of them
    within its median and 95 % within its 95th percentile.

    Attributes:
        returns: forecasts that were checked.
        within_p50: of these, returns no later than the median that was foretold.
        within_p95: and no later than the 95th percentile.
        places: forecasts of the next state that were checked.
        likeliest: of these, the ones whose likeliest state it was.
        chance: the sum of the probabilities that were given to what happened.
    """

    returns: int = 0
    within_p50: int = 0
    within_p95: int = 0
    places: int = 0
    likeliest: int = 0
    chance: float = 0.0

    def observe(self, forecast: Forecast, seconds: float, state: str) -> None:
        """A program came back after `seconds`, to `state`."""
        if forecast.seconds_p50 is not None and forecast.seconds_p95 is not None:
            self.returns += 1
            self.within_p50 += seconds <= forecast.seconds_p50
            self.within_p95 += seconds <= forecast.seconds_p95
        if forecast.next:
            self.places += 1
            self.likeliest += state == max(forecast.next, key=forecast.next.__getitem__)
            self.chance += forecast.next.get(state, 0.0)


__all__ = ["Calibration"]
