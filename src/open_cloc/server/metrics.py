"""What Prometheus may know of a server."""

from __future__ import annotations

from collections.abc import Callable

from open_cloc.config import require

prometheus = require("prometheus_client", "serve")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, waiting: Callable[[], int], cached: Callable[[], int]) -> None:
        """Begin at nothing.

        Args:
            waiting: Pictures that wait for the model.
            cached: Bytes of pictures that are remembered.
        """
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "open_cloc_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self.seconds = prometheus.Histogram(
            "open_cloc_request_seconds",
            "Time to answer, by route.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batches = prometheus.Histogram(
            "open_cloc_batch_size", "Pictures in a pass.", buckets=SIZES, registry=self.registry
        )
        self.pictures = prometheus.Counter(
            "open_cloc_pictures",
            "Pictures asked about, by whether they were remembered.",
            ("cache",),
            registry=self.registry,
        )
        for name, text, value in (
            ("open_cloc_waiting_pictures", "Pictures that wait for the model.", waiting),
            ("open_cloc_cache_bytes", "Bytes of remembered pictures.", cached),
        ):
            prometheus.Gauge(name, text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All of it in Prometheus's own form."""
        return bytes(prometheus.generate_latest(self.registry))
