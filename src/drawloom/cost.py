"""What computing costs, as the scheduler and the simulator see it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostModel:
    """Of one engine and model.

    Args:
        prefill: seconds a token, at the engine's usual chunk size.
        decode: seconds of a decode step at batch 1.
    """

    prefill: float = 1e-4
    decode: float = 1e-2

    def recompute(self, tokens: int) -> float:
        """Seconds that having `tokens` tokens in the cache saves."""
        return self.prefill * tokens

    def learn(self, tokens: int, seconds: float, weight: float = 0.1) -> "CostModel":
        """The model after one more observed prefill."""
        if tokens < 1 or seconds <= 0:
            return self
        fresh = seconds / tokens
        return CostModel((1 - weight) * self.prefill + weight * fresh, self.decode)


__all__ = ["CostModel"]
