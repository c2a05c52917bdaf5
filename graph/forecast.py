"""Forecast for a program that waits for tools."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Forecast:
    """Describe when and where a program is expected to make its next LLM call.

    Attributes:
        tool: key of the tools that the program waits for.
        next: probability of each next graph state.
        seconds_p50: median of the seconds until the program returns; None if nothing is known.
        seconds_p95: 95th percentile of the same.
        steps_left: expected LLM calls until the program ends; None if nothing is known.
    """

    tool: str
    next: dict[str, float] = field(default_factory=dict)
    seconds_p50: float | None = None
    seconds_p95: float | None = None
    steps_left: float | None = None


__all__ = ["Forecast"]
