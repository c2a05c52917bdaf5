"""Base of policies that know requests only.

How many requests run at a time is the first knob of such servers (vLLM's `max_num_seqs`).
"""

from drawloom.runtime.scheduler.policy import Policy


class RequestLevel(Policy):
    """Give every call to the engine, which runs a bounded number of them.

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
