"""Metrics for Prometheus, in a separate registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from justright.engine.request import Request
from justright.reasoning.budget import FAST
from justright.serve.scheduler import Snapshot

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_STEP_TOKENS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
"""Upper bounds of the context-length classes by which acceptance is reported."""


class Metrics:
    """All metrics of one server.

    Args:
        snapshot: returns the current state; called at each scrape.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self.registry = CollectorRegistry()
        self._http(self.registry)
        self._tokens(self.registry)
        self.registry.register(_SnapshotCollector(snapshot))

    def _http(self, registry: CollectorRegistry) -> None:
        self.responses = Counter(
            "justright_http_requests",
            "HTTP requests by path and status.",
            ("path", "status"),
            registry=registry,
        )
        self.answers = Counter(
            "justright_answers", "Answers by how they ended.", ("ended_by",), registry=registry
        )
        self.latency = Histogram(
            "justright_request_duration_seconds",
            "From a request's arrival to its last byte.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "justright_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.each_token = Histogram(
            "justright_time_per_output_token_seconds",
            "Mean time of an answer's tokens after the first.",
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )

    def _tokens(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"justright_{name}", text, labels, registry=registry)

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens.")
        self.cached_tokens = counter("prompt_tokens_cached", "Prompt tokens found in the KV cache.")
        self.emitted_tokens = counter("emitted_tokens", "Output tokens, counted when they are emitted.")
        self.output_tokens = counter(
            "output_tokens", "Output tokens of finished answers, reasoning included."
        )
        self.reasoning_tokens = counter("reasoning_tokens", "Reasoning tokens.")
        self.mode_tokens = counter("mode_tokens", "Output tokens by mode.", ("mode",))
        self.discarded_tokens = counter("discarded_tokens", "Tokens of answers discarded for slower ones.")
        self.saved_tokens = Gauge(
            "justright_saved_tokens",
            "Tokens saved compared with always reasoning, by calibration; may be negative.",
            registry=registry,
        )
        self.drafted_tokens = counter("drafted_tokens", "Draft tokens verified.")
        self.accepted_tokens = counter("accepted_tokens", "Draft tokens accepted.")
        self.decisions = counter("decisions", "Answers by mode, and by what decided it.", ("mode", "by"))
        self.acceptance = Histogram(
            "justright_acceptance_length_tokens",
            "Tokens per verification, by the upper bound of the context's length class.",
            ("context",),
            buckets=_STEP_TOKENS,
            registry=registry,
        )

    def answered(self, request: Request, ended_by: str) -> None:
        """Count a finished answer."""
        stats = request.stats
        self.answers.labels(ended_by).inc()
        self.prompt_tokens.inc(stats.prompt_tokens)
        self.cached_tokens.inc(stats.reused_tokens)
        self.output_tokens.inc(stats.output_tokens)
        self.reasoning_tokens.inc(stats.reasoning_tokens)
        self.mode_tokens.labels("fast").inc(stats.fast_tokens)
        self.mode_tokens.labels("slow").inc(stats.output_tokens - stats.fast_tokens)
        self.discarded_tokens.inc(stats.discarded_tokens)
        self.drafted_tokens.inc(stats.drafted)
        self.accepted_tokens.inc(stats.accepted)
        if stats.tokens_saved is not None:
            self.saved_tokens.inc(stats.tokens_saved)
        mode = "fast" if request.plan.factor >= FAST else "slow"
        decision = stats.decision
        self.decisions.labels(
            mode if decision is None else decision.mode, decision.by if decision else "model"
        ).inc()
        for (position, *_), tokens in zip(stats.steps, stats.step_tokens, strict=True):
            self.acceptance.labels(context_class(stats.prompt_tokens + position)).observe(tokens)

    def render(self) -> bytes:
        """Return the page that Prometheus scrapes."""
        return generate_latest(self.registry)


class _SnapshotCollector(Collector):
    """Reports the current state from one snapshot."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield a gauge for each value."""
        now = self._snapshot()
        limit = float("nan") if now.cache_tokens is None else now.cache_tokens
        for name, text, value in (
            ("requests_waiting", "Requests without a slot.", now.waiting),
            ("requests_running", "Requests with a slot.", now.running),
            ("slots", "Most requests that run at once.", now.slots),
            ("cache_tokens", "Tokens in the KV cache.", now.cached_tokens),
            (
                "cache_reserved_tokens",
                "Tokens that the running requests can use at most.",
                now.reserved_tokens,
            ),
            ("cache_limit_tokens", "Most tokens, cached or reserved; NaN: no limit.", limit),
            ("cache_bytes", "Bytes of the KV cache.", now.cache_bytes),
            ("engine_up", "Whether the engine's thread runs.", now.alive),
            ("draining", "Whether new requests are rejected.", now.draining),
        ):
            yield GaugeMetricFamily(f"justright_{name}", text, value=float(value))


def context_class(tokens: int) -> str:
    """Return the upper bound of a context's length class."""
    return next((str(bound) for bound in CONTEXTS if tokens <= bound), "inf")
