"""Export of conversations with their KV, and import of those that other engines exported."""

from drawloom.engine.core.step_plan import Runner
from drawloom.engine.core.transfers import Transfers
from drawloom.engine.kvcache.copies import Copies
from drawloom.engine.kvcache.kv_cache import KVCache
from drawloom.engine.kvcache.kv_export import Fingerprint, pack, unpack
from drawloom.errors import EngineError
from drawloom.leases import KVReply, LeaseStatus


class KVExchange:
    """Move the KV of conversations between engines of the same model.

    Attributes:
        fingerprint: what both engines must have in common; None if this one exchanges nothing.
    """

    def __init__(
        self,
        cache: KVCache,
        runner: Runner,
        transfers: Transfers,
        fingerprint: Fingerprint | None,
    ) -> None:
        self._cache, self._runner, self._transfers = cache, runner, transfers
        self.fingerprint = fingerprint

    def export(self, conversation: str, weights: str) -> bytes:
        """Return the tokens and the KV of a conversation.

        Args:
            weights: version of the weights.

        Raises:
            EngineError: if the conversation is unknown, or this engine exports nothing.
        """
        windowed = self._cache.window > 0
        found = None if windowed else self._cache.block_locations(conversation)
        if found is None or self.fingerprint is None:
            raise EngineError(f"conversation {conversation} is unknown here, or not exportable")
        self._transfers.start()
        tokens, locations = found
        return pack(self.fingerprint, weights, tokens, self._runner.read(locations))

    def restore(self, conversation: str, data: bytes, salt: bytes, weights: str) -> KVReply:
        """Take over a conversation that another engine exported.

        Args:
            salt: of the tenant, with the version of the weights.
            weights: version of the weights.

        Returns:
            `CLIPPED` if there is no room for all of it.

        Raises:
            EngineError: if the KV is of another model or other weights.
        """
        if self.fingerprint is None:
            raise EngineError("this engine takes no KV from elsewhere")
        tokens, kv = unpack(self.fingerprint, weights, data)
        blocks = self._cache.import_tokens(conversation, tokens, salt)
        copies = self._cache.take_copies()
        self._transfers.run(Copies(copies.spills, [], []))  # before their blocks are overwritten
        try:
            self._runner.write(blocks, kv)
        except Exception:
            self._cache.remove_blocks(blocks)
            self._transfers.cancel(Copies([], copies.saves, []))
            self._transfers.run(Copies([], [], copies.loads))
            raise
        self._transfers.run(Copies([], copies.saves, copies.loads))  # after they are written
        covered = min(len(tokens), len(blocks) * self._cache.block_size)
        whole = covered == len(tokens)
        return KVReply(LeaseStatus.ACCEPTED if whole else LeaseStatus.CLIPPED, covered)


__all__ = ["KVExchange"]
