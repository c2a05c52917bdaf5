"""Cost model of an engine: seconds of prefill, decode and copies."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from drawloom.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CostModel:
    """Predict the seconds that one engine and model take.

    An engine step of n new tokens over c cached ones, with b sequences of t context tokens in all
    that decode in it, takes
    ``step + prefill n + prefill_cached n c + decode_sequence b + decode_token t``.
    `drawloom profile` measures the model. All values are seconds.

    Attributes:
        prefill: for a prompt token, waiting for others in the batch included.
        prefill_cached: for a prompt token and each token that it attends to.
        step: for an engine step, whatever it computes (reading the weights).
        decode_sequence: for a sequence that decodes in a step.
        decode_token: for a context token of such a sequence.
        copy: for moving a token's KV between device and host memory.
        call: for an LLM call beside its tokens, on its way to the engine and back.
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
        """Return the seconds to compute a context of `tokens` tokens that is not in the cache."""
        return self.prefill * tokens + self.prefill_cached * tokens * tokens / 2

    def restore(self, tokens: int) -> float:
        """Return the seconds to copy `tokens` tokens back from host memory."""
        return self.copy * tokens

    def decode(self, sequences: int, context: int) -> float:
        """Return the seconds of a step that decodes `sequences` of `context` tokens in all."""
        return self.step + self.decode_sequence * sequences + self.decode_token * context


__all__ = ["CostModel"]
