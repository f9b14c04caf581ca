"""What is counted, timed and traced. Ray gathers it from all replicas and offers it to Prometheus.

Stages are OpenTelemetry spans too, which cost nothing until a tracer is set up, as Ray Serve does where
``RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH`` names an exporter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from ray.util.metrics import Counter, Gauge, Histogram

_TRACER = trace.get_tracer("routerretriever")
_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]


class Metrics:
    """The metrics of one replica; Ray adds which one it is."""

    def __init__(self) -> None:
        self.requests = Counter(
            "routerretriever_requests", "Answers by route and status.", ("route", "status", "bundle")
        )
        self.request_seconds = Histogram(
            "routerretriever_request_seconds", "Time to answer.", _SECONDS, ("route",)
        )
        self.stage_seconds = Histogram(
            "routerretriever_stage_seconds",
            "Time of each stage of a batch: tokenizer, routing, experts (the pass), search.",
            _SECONDS,
            ("stage",),
        )
        self.batch_size = Histogram(
            "routerretriever_batch_queries", "Texts in a pass.", [1, 2, 4, 8, 16, 32, 64, 128], ()
        )
        self.batch_tokens = Histogram(
            "routerretriever_batch_tokens", "Tokens in a pass.", [8, 32, 128, 512, 1024, 2048, 4096, 8192], ()
        )
        self.waiting = Gauge("routerretriever_waiting_queries", "Texts that wait for a pass.", ())
        self.waiting_tokens = Gauge(
            "routerretriever_waiting_tokens", "Tokens, about, that wait for a pass.", ()
        )
        self.cache_lookups = Counter(
            "routerretriever_cache_lookups", "Texts looked up in the cache of vectors.", ("outcome",)
        )
        self.expert_weight = Counter(
            "routerretriever_expert_weight", "Sum of the weights given to each expert.", ("expert",)
        )
        self.expert_queries = Counter(
            "routerretriever_expert_queries", "Queries that each expert had a part in.", ("expert",)
        )
        self.routing_entropy = Histogram(
            "routerretriever_routing_entropy",
            "Entropy in bits of a query's weights over experts.",
            [0.01, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4],
            (),
        )
        self.fallback_queries = Counter(
            "routerretriever_fallback_queries", "Queries most of whose weight went to the bare base.", ()
        )
        self.drift = Gauge(
            "routerretriever_routing_drift",
            "Jensen-Shannon distance of the live routing shares from the expected ones.",
            (),
        )
        self.releases = Counter(
            "routerretriever_releases", "Bundles that were let in or refused.", ("outcome",)
        )
        self.registry_away = Gauge(
            "routerretriever_registry_away", "1 while the registry does not answer, else 0.", ()
        )
        self.shadows = Counter(
            "routerretriever_shadows", "Searches that the challenger was to answer too.", ("outcome",)
        )
        self.shadow_documents = Counter(
            "routerretriever_shadow_documents",
            "Documents of shadowed searches' answers that the challenger found too, or not.",
            ("found_by",),
        )
        self.shadow_seconds = Histogram(
            "routerretriever_shadow_seconds",
            "Time of shadowed searches: of the answer that was sent, and of its shadow.",
            _SECONDS,
            ("answer",),
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time and trace a stage."""
        start = time.perf_counter()
        try:
            with _TRACER.start_as_current_span(name):
                yield
        finally:
            self.stage_seconds.observe(time.perf_counter() - start, {"stage": name})
