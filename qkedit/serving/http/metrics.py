"""The server's metrics, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """The counters of one server, in a separate registry; safe to use from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "qkedit_requests", "Requests answered, refusals included", ["path", "status"], registry=self._registry
        )
        self.waiting = Gauge(
            "qkedit_requests_under_way", "Requests being answered or waiting for it", registry=self._registry
        )
        self._request_seconds = Histogram(
            "qkedit_request_seconds",
            "From a request's first byte to its answer's last, waiting included",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._generation_seconds = Histogram(
            "qkedit_generation_seconds",
            "Prefill and decoding of one answer, plug-ins included",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._prompt_tokens = Counter("qkedit_prompt_tokens", "Tokens read", registry=self._registry)
        self._answer_tokens = Counter("qkedit_answer_tokens", "Tokens made", registry=self._registry)
        self._plugin_prefills = Counter(
            "qkedit_plugin_prefills", "Prefills that a plug-in edited", ["plugin"], registry=self._registry
        )
        self._plugin_seconds = Counter(
            "qkedit_plugin_seconds", "Host time spent in a plug-in", ["plugin"], registry=self._registry
        )
        ProcessCollector(registry=self._registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count one request by its path, which must be one of a fixed set, and its status."""
        self._requests.labels(path, status).inc()
        self._request_seconds.labels(path).observe(seconds)

    def answer(self, prompt_tokens: int, answer_tokens: int, seconds: float, plugins: Mapping[str, float]) -> None:
        """Count one answer; `plugins` are the seconds spent in each active plug-in."""
        self._prompt_tokens.inc(prompt_tokens)
        self._answer_tokens.inc(answer_tokens)
        self._generation_seconds.observe(seconds)
        for name, own in plugins.items():
            self._plugin_prefills.labels(name).inc()
            self._plugin_seconds.labels(name).inc(own)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self._registry)
