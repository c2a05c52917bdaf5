"""Statistics of an engine: gauges of now, and counters since its start."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class BatchCounters:
    """Count what the batch has done since the engine started.

    Attributes:
        steps: engine steps.
        computed_tokens: tokens whose KV was computed.
        generated_tokens: tokens that were sampled.
        preemptions: sequences that lost their blocks to others and were queued again.
    """

    steps: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class BatchStats(BatchCounters):
    """Report the sequences of an engine, with the counters of its batch.

    Attributes:
        running: sequences with blocks, `parked` ones included.
        waiting: sequences in the queue.
        parked: running sequences that wait for their KV to be loaded from host memory.
    """

    running: int = 0
    waiting: int = 0
    parked: int = 0


@dataclass(slots=True)
class CacheCounters:
    """Count what the KV cache has done since the engine started, in tokens, blocks and events.

    Attributes:
        prompt_tokens: tokens of prompts that were looked up.
        hit_tokens: of these, found on the device; `hit_host_tokens` were found in host memory.
        recomputed_tokens: tokens computed again that their conversation had computed before.
        lease_grants: leases granted; `lease_clips` of them for a part of the conversation only.
        lease_breaks: leases broken because blocks were needed.
        lease_regrets: broken leases whose conversation returned before they would have ended.
        regret_tokens: tokens that were computed again because of that.
        evictions: blocks evicted from the device.
        demotions: conversations copied to host memory on request.
        saved_blocks: blocks copied to host memory; `loaded_blocks` were copied back.
    """

    prompt_tokens: int = 0
    hit_tokens: int = 0
    hit_host_tokens: int = 0
    recomputed_tokens: int = 0
    lease_grants: int = 0
    lease_clips: int = 0
    lease_breaks: int = 0
    lease_regrets: int = 0
    regret_tokens: int = 0
    evictions: int = 0
    demotions: int = 0
    saved_blocks: int = 0
    loaded_blocks: int = 0


@dataclass(slots=True)
class CacheStats(CacheCounters):
    """Report the blocks of a KV cache, with its counters.

    Attributes:
        free_blocks: device blocks without content.
        held_blocks: device blocks that sequences or copies in flight use.
        leased_blocks: device blocks under lease.
        total_blocks: all device blocks.
        host_blocks: blocks of host memory in use, of `total_host_blocks`.
        conversations: conversations that the cache has a record of.
    """

    free_blocks: int = 0
    held_blocks: int = 0
    leased_blocks: int = 0
    total_blocks: int = 0
    host_blocks: int = 0
    total_host_blocks: int = 0
    conversations: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Report the state of an engine.

    Attributes:
        model_seconds: time that the runner took for steps.
        overhead_seconds: all other time of the steps, on the CPU.
        weights: version of the weights, empty for those it started with.
        asleep: whether the device's memory was given back.
        restarting: the engine's process died and another is starting; all else is as last known.
    """

    batch: BatchStats = field(default_factory=BatchStats)
    cache: CacheStats = field(default_factory=CacheStats)
    model_seconds: float = 0.0
    overhead_seconds: float = 0.0
    weights: str = ""
    asleep: bool = False
    restarting: bool = False


__all__ = ["BatchCounters", "BatchStats", "CacheCounters", "CacheStats", "EngineStats"]
