"""Cost model of an engine that was not profiled, learned from its calls."""

from drawloom.runtime.scheduler.cost import CostModel

_DECAY = 0.98  # of all earlier calls, with each call
_SPREAD = 0.1  # variance over squared mean of prompts, from which on a line is fitted


class LearnedCost:
    """Fit a cost model to the calls that ended.

    Prefill seconds are a line over the computed tokens (least squares, older calls decay): its
    slope is the cost of a prompt token. While prompts are alike, the mean is used instead. The cost
    of an engine step is that of an output token.
    """

    __slots__ = ("_decoding", "_model", "_output", "_sums")

    def __init__(self) -> None:
        self._model: CostModel | None = CostModel()
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # weight, tokens, seconds, tokens², tokens seconds
        self._output = self._decoding = 0.0

    def learn(self, computed: int, prefill: float, output: int, decoding: float) -> None:
        """Learn from a call.

        Args:
            computed: prompt tokens that it computed.
            prefill: seconds that this took.
            output: tokens that it decoded.
            decoding: seconds that this took.
        """
        if computed > 0 and prefill > 0:
            w, x, y, xx, xy = self._sums
            self._sums = (
                _DECAY * w + 1.0,
                _DECAY * x + computed,
                _DECAY * y + prefill,
                _DECAY * xx + computed * computed,
                _DECAY * xy + computed * prefill,
            )
        if output > 0 and decoding > 0:
            self._output = _DECAY * self._output + output
            self._decoding = _DECAY * self._decoding + decoding
        self._model = None

    @property
    def model(self) -> CostModel:
        """Return the cost model; the default one before anything was learned."""
        if self._model is None:
            known = CostModel()
            step = self._decoding / self._output if self._output else known.step
            self._model = CostModel(prefill=self._prefill() or known.prefill, step=step)
        return self._model

    def _prefill(self) -> float:
        """Return the seconds of a prompt token; 0 while none was computed."""
        w, x, y, xx, xy = self._sums
        if not x:
            return 0.0
        mean, spread = y / x, w * xx - x * x
        slope = (w * xy - x * y) / spread if spread > _SPREAD * x * x else 0.0
        return min(slope, mean) if slope > 0 else mean


__all__ = ["LearnedCost"]
