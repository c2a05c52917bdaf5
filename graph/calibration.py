"""Comparison of forecasts with what then happened."""

from dataclasses import dataclass

from drawloom.graph.forecast import Forecast


@dataclass(slots=True)
class Calibration:
    """Count how often forecasts for one tool, or one set of tools, came true.

    If forecasts are right, half of the returns are within the median and 95 % within the 95th
    percentile. The field names are stored with learned graphs.

    Attributes:
        returns: checked forecasts of the time until a program returns.
        within_p50: returns no later than the forecast median.
        within_p95: returns no later than the forecast 95th percentile.
        places: checked forecasts of the next state.
        likeliest: how often the next state was the one forecast as likeliest.
        chance: sum of the probabilities that were forecast for the states that came next.
    """

    returns: int = 0
    within_p50: int = 0
    within_p95: int = 0
    places: int = 0
    likeliest: int = 0
    chance: float = 0.0

    def observe(self, forecast: Forecast, seconds: float, state: str) -> None:
        """Compare a forecast with the return of its program.

        Args:
            forecast: made when the program called its tools.
            seconds: time from then until the program's next LLM call.
            state: the graph state of that call.
        """
        if forecast.seconds_p50 is not None and forecast.seconds_p95 is not None:
            self.returns += 1
            self.within_p50 += seconds <= forecast.seconds_p50
            self.within_p95 += seconds <= forecast.seconds_p95
        if forecast.next:
            self.places += 1
            self.likeliest += state == max(forecast.next, key=forecast.next.__getitem__)
            self.chance += forecast.next.get(state, 0.0)


__all__ = ["Calibration"]
