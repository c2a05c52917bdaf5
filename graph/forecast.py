"""What the graph says when a program is suspended."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Forecast:
    """`seconds_*` until the program returns to the model; None where nothing is known yet."""

    tool: str
    next: dict[str, float] = field(default_factory=dict)
    seconds_p50: float | None = None
    seconds_p95: float | None = None
    steps_left: float | None = None


__all__ = ["Forecast"]
