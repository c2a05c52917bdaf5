"""What computing costs, as the scheduler and the simulator see it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostModel:
    """Of one engine and model.

    Args:
        prefill: seconds a token, waiting for others in the batch included.
    """

    prefill: float = 1e-4

    def recompute(self, tokens: int) -> float:
        """Seconds that having `tokens` tokens in the cache saves."""
        return self.prefill * tokens

    def learn(self, tokens: int, seconds: float, weight: float = 0.1) -> "CostModel":
        """The model after one more observed prefill."""
        if tokens < 1 or seconds <= 0:
            return self
        fresh = seconds / tokens
        return CostModel((1 - weight) * self.prefill + weight * fresh)


__all__ = ["CostModel"]
