"""What computing costs, as the scheduler and the simulator see it."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from drawloom.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CostModel:
    """Of one engine and model; all in seconds. `drawloom profile` measures it, `learn` refines it.

    A step of n new tokens over c cached ones, with b sequences of t tokens decoding beside it,
    takes ``step + prefill n + prefill_cached n c + decode_sequence b + decode_token t``.

    Args:
        prefill: a prompt token, waiting for others in the batch included.
        prefill_cached: and for each token that it attends to.
        step: a step, whatever it computes (reading the weights).
        decode_sequence: a sequence that decodes in it.
        decode_token: a token of context of these.
        copy: moving a token's KV between device and host memory.
        call: what an LLM call takes beside its tokens, on its way to the engine and back.
    """

    prefill: float = 1e-4
    prefill_cached: float = 0.0
    step: float = 0.0
    decode_sequence: float = 0.0
    decode_token: float = 0.0
    copy: float = 0.0
    call: float = 0.0

    @classmethod
    def load(cls, path: Path) -> "CostModel":
        """Read a cost model that `drawloom profile --out` wrote.

        Raises:
            ConfigError: the file is none.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is no cost model: {error}; write it with profile --out"
            ) from None

    def save(self, path: Path) -> None:
        """Write a cost model, for `load`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def recompute(self, tokens: int) -> float:
        """Seconds that having `tokens` tokens in the cache saves."""
        return self.prefill * tokens + self.prefill_cached * tokens * tokens / 2

    def restore(self, tokens: int) -> float:
        """Seconds that bringing them back from host memory takes."""
        return self.copy * tokens

    def decode(self, sequences: int, context: int) -> float:
        """Seconds of a step that decodes `sequences` sequences of `context` tokens in all."""
        return self.step + self.decode_sequence * sequences + self.decode_token * context

    def learn(self, tokens: int, seconds: float, weight: float = 0.1) -> "CostModel":
        """The model after one more observed prefill."""
        if tokens < 1 or seconds <= 0:
            return self
        fresh = seconds / tokens
        return replace(self, prefill=(1 - weight) * self.prefill + weight * fresh)


__all__ = ["CostModel"]
