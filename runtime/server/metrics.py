"""Prometheus metrics, with vLLM's names where it has them, since dashboards know those."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from drawloom.engine.api.engine import EngineInfo, EngineStats, RequestUsage

_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
_TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
)
_LABELS = ("model_name", "engine")


class Timings:
    """Keep latency histograms of requests, with vLLM's names and buckets."""

    def __init__(self, info: EngineInfo) -> None:
        self.registry = CollectorRegistry()
        self._labels = (info.model, info.id)

        def seconds(name: str, words: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(
                f"vllm:{name}", words, _LABELS, registry=self.registry, buckets=buckets
            )

        self._first = seconds("time_to_first_token_seconds", "From submission to the first token")
        self._each = seconds(
            "time_per_output_token_seconds", "Time per output token", _TOKEN_SECONDS
        )
        self._whole = seconds("e2e_request_latency_seconds", "From submission to the end")
        self._queue = seconds("request_queue_time_seconds", "From submission to the start")
        self._prefill = seconds("request_prefill_time_seconds", "From the start to the first token")
        self._decode = seconds("request_decode_time_seconds", "From the first token to the end")
        self._ends = Counter(
            "vllm:request_success",
            "Completed requests",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )

    def observe(self, usage: RequestUsage, finish: str) -> None:
        """Record a completed request.

        Args:
            usage: its tokens and times.
            finish: its finish reason.
        """
        at = self._labels
        self._first.labels(*at).observe(usage.first - usage.submitted)
        if usage.output_tokens > 1:
            each = (usage.finished - usage.first) / (usage.output_tokens - 1)
            self._each.labels(*at).observe(each)
        self._whole.labels(*at).observe(usage.finished - usage.submitted)
        self._queue.labels(*at).observe(usage.started - usage.submitted)
        self._prefill.labels(*at).observe(usage.first - usage.started)
        self._decode.labels(*at).observe(usage.finished - usage.first)
        self._ends.labels(*at, finish).inc()


class _Snapshot(Collector):
    def __init__(self, info: EngineInfo, stats: EngineStats, programs: int) -> None:
        self._info, self._stats, self._programs = info, stats, programs

    def collect(self) -> Iterable[Metric]:
        info, stats = self._info, self._stats
        batch, cache = stats.batch, stats.cache
        used = cache.held_blocks / max(1, cache.total_blocks)
        blocks = {"block_size": str(info.block_size), "num_gpu_blocks": str(cache.total_blocks)}
        config = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache", labels=[*blocks, *_LABELS]
        )
        config.add_metric([*blocks.values(), info.model, info.id], 1)
        yield config
        yield from self._gauges(
            {
                "vllm:num_requests_running": batch.running,
                "vllm:num_requests_waiting": batch.waiting,
                "vllm:kv_cache_usage_perc": used,
                "drawloom_programs": self._programs,
                "drawloom_requests_parked": batch.parked,
                "drawloom_kv_blocks_free": cache.free_blocks,
                "drawloom_kv_blocks_held": cache.held_blocks,
                "drawloom_kv_blocks_leased": cache.leased_blocks,
                "drawloom_kv_blocks_host": cache.host_blocks,
                "drawloom_kv_conversations": cache.conversations,
            }
        )
        yield from self._counters(
            {
                "vllm:prefix_cache_queries": cache.prompt_tokens,
                "vllm:prefix_cache_hits": cache.hit_tokens + cache.hit_host_tokens,
                "vllm:prompt_tokens": cache.prompt_tokens,
                "vllm:generation_tokens": batch.generated_tokens,
                "vllm:num_preemptions": batch.preemptions,
                "drawloom_kv_hit_device_tokens": cache.hit_tokens,
                "drawloom_kv_hit_host_tokens": cache.hit_host_tokens,
                "drawloom_kv_recomputed_tokens": cache.recomputed_tokens,
                "drawloom_kv_lease_grants": cache.lease_grants,
                "drawloom_kv_lease_clips": cache.lease_clips,
                "drawloom_kv_lease_breaks": cache.lease_breaks,
                "drawloom_kv_lease_regrets": cache.lease_regrets,
                "drawloom_kv_regret_tokens": cache.regret_tokens,
                "drawloom_kv_evictions": cache.evictions,
                "drawloom_kv_demotions": cache.demotions,
                "drawloom_kv_saved_blocks": cache.saved_blocks,
                "drawloom_kv_loaded_blocks": cache.loaded_blocks,
                "drawloom_engine_steps": batch.steps,
                "drawloom_engine_computed_tokens": batch.computed_tokens,
                "drawloom_engine_model_seconds": stats.model_seconds,
                "drawloom_engine_host_seconds": stats.overhead_seconds,
            }
        )

    def _gauges(self, values: dict[str, float]) -> Iterable[Metric]:
        for name, value in values.items():
            family = GaugeMetricFamily(name, name, labels=_LABELS)
            family.add_metric([self._info.model, self._info.id], value)
            yield family

    def _counters(self, values: dict[str, float]) -> Iterable[Metric]:
        for name, value in values.items():
            family = CounterMetricFamily(name, name, labels=_LABELS)
            family.add_metric([self._info.model, self._info.id], value)
            yield family


def render(timings: Timings, info: EngineInfo, stats: EngineStats, programs: int) -> bytes:
    """Return the page that Prometheus reads.

    Args:
        timings: histograms of requests.
        info: the engine.
        stats: the engine's counters.
        programs: number of programs that the server keeps.
    """
    now = CollectorRegistry()
    now.register(_Snapshot(info, stats, programs))
    return generate_latest(now) + generate_latest(timings.registry)


__all__ = ["Timings", "render"]
