"""Parts of an engine core over a runner without a model."""

from drawloom.engine.api.engine import EngineInfo


def mock_info(blocks: int, size: int, host: int = 0, context: int | None = None) -> EngineInfo:
    """Describe a mock engine.

    Args:
        blocks: blocks of KV memory.
        size: tokens a block.
        host: blocks of host memory.
        context: most tokens of a request; as many as the KV memory holds, if not given.
    """
    return EngineInfo(
        "e",
        "mock",
        "cpu",
        max_context=blocks * size if context is None else context,
        kv_tokens=blocks * size,
        block_size=size,
        host_tokens=host * size,
    )
