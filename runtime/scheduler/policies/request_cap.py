"""Servers that know requests only: how many they run at a time is the first knob that anyone turns
(vLLM's `max_num_seqs`)."""

from drawloom.runtime.scheduler.policy import Policy


class RequestLevel(Policy):
    """Everybody's calls go to the engine, which runs at most so many.

    Args:
        sequences: calls that the engine runs at a time; 0 is as many as it can.
    """

    def __init__(self, sequences: float = 0) -> None:
        if sequences < 0:
            raise ValueError(sequences)
        self.sequences = int(sequences)
        if self.sequences:
            self.name = f"{self.name}:{self.sequences}"


__all__ = ["RequestLevel"]
