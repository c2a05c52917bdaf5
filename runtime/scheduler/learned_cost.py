"""What calls cost, learned from those that ended."""

from drawloom.runtime.scheduler.cost import CostModel

_FADE = 0.98  # of what was learned, with each call
_SPREAD = 0.1  # of the mean prompt, squared, from which on prompts differ enough for a line


class LearnedCost:
    """The cost model of an engine that was not profiled, from the calls that it ended.

    Prefills lie on a line over the tokens that they computed (least squares, old calls fade): its
    slope is a prompt token, whatever a call takes beside. While prompts are alike it is the mean.
    A step is what an output token takes.
    """

    __slots__ = ("_decoding", "_model", "_output", "_sums")

    def __init__(self) -> None:
        self._model: CostModel | None = CostModel()
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # weight, tokens, seconds, tokens², tokens seconds
        self._output = self._decoding = 0.0

    def learn(self, computed: int, prefill: float, output: int, decoding: float) -> None:
        """Learn from a call that computed so many prompt tokens in `prefill` seconds, and said so
        many in `decoding`."""
        if computed > 0 and prefill > 0:
            w, x, y, xx, xy = self._sums
            self._sums = (
                _FADE * w + 1.0,
                _FADE * x + computed,
                _FADE * y + prefill,
                _FADE * xx + computed * computed,
                _FADE * xy + computed * prefill,
            )
        if output > 0 and decoding > 0:
            self._output = _FADE * self._output + output
            self._decoding = _FADE * self._decoding + decoding
        self._model = None

    @property
    def model(self) -> CostModel:
        """The cost model as it is now; before anything was learned, the default."""
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
