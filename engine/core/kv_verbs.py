"""Verbs about the KV of programs, which need no step."""

from collections.abc import Callable

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import EngineInfo, EngineStats
from drawloom.engine.core.step_plan import Runner
from drawloom.engine.core.transfers import Transfers
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.kvcache.kv_export import Fingerprint, pack, unpack
from drawloom.errors import EngineError
from drawloom.leases import KVReply, LeaseStatus


class KVVerbs(Transfers):
    """The part of an engine core that answers for its KV cache."""

    def __init__(
        self,
        info: EngineInfo,
        cache: KVCache,
        runner: Runner,
        fingerprint: Fingerprint | None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(cache, runner)
        self.info = info
        self.weights, self.asleep = "", False
        self.prefill_seconds = self.copy_seconds = 0.0
        self.model_seconds = self.overhead_seconds = 0.0
        self._fingerprint, self._clock = fingerprint, clock

    def _salt(self, salt: bytes) -> bytes:
        """KV of other weights is other KV."""
        return self.weights.encode() + b"\0" + salt if self.weights else salt

    def _export(self, command: do.Export) -> bytes:
        windowed = self.cache.window > 0
        found = None if windowed else self.cache.block_locations(command.conversation)
        if found is None or self._fingerprint is None or self.asleep:
            raise EngineError(
                f"conversation {command.conversation} is unknown here, or not exportable"
            )
        self._transfer()
        tokens, places = found
        return pack(self._fingerprint, self.weights, tokens, self._runner.read(places))

    def _import(self, command: do.Import) -> KVReply:
        if self._fingerprint is None or self.asleep:
            raise EngineError("this engine takes no KV from elsewhere")
        tokens, data = unpack(self._fingerprint, self.weights, command.data)
        blocks = self.cache.import_tokens(command.conversation, tokens, self._salt(command.salt))
        copies = self.cache.take_copies()
        self._begin(Copies(copies.spills, [], []))  # before it is written over
        try:
            self._runner.write(blocks, data)
        except Exception:
            self.cache.remove_blocks(blocks)
            self._not_copied(Copies([], copies.saves, []))
            self._begin(Copies([], [], copies.loads))
            raise
        self._begin(Copies([], copies.saves, copies.loads))  # after it is written
        covered = min(len(tokens), len(blocks) * self.info.block_size)
        whole = covered == len(tokens)
        return KVReply(LeaseStatus.ACCEPTED if whole else LeaseStatus.CLIPPED, covered)

    def stats(self) -> EngineStats:
        """Return the present gauges and counters."""
        return EngineStats(
            self.batch.stats(),
            self.cache.stats(),
            self.model_seconds,
            self.overhead_seconds,
            self.weights,
            self.asleep,
        )


__all__ = ["KVVerbs"]
