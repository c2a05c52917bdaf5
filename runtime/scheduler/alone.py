"""What calls would take with nothing beside them."""

from dataclasses import dataclass
from math import inf

_PROMPT, _OUTPUT = 64, 8  # tokens of a call that says how quick an engine is


@dataclass(slots=True)
class Quickest:
    """Seconds of a prompt token and of an output token, the least that were seen: a busy engine is
    slower, but it never was quicker than it is alone."""

    prompt: float = inf
    output: float = inf

    def learn(self, computed: int, prefill: float, output: int, decoding: float) -> None:
        """A call computed so many prompt tokens in `prefill` seconds, and said so many in
        `decoding`."""
        if computed >= _PROMPT and prefill > 0:
            self.prompt = min(self.prompt, prefill / computed)
        if output >= _OUTPUT and decoding > 0:
            self.output = min(self.output, decoding / output)

    def seconds(self, computed: int, output: int) -> float:
        """Of such a call, alone; what was never seen counts nothing."""
        prompt = self.prompt if self.prompt < inf else 0.0
        return computed * prompt + output * (self.output if self.output < inf else 0.0)


__all__ = ["Quickest"]
