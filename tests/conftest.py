"""Fixtures of all tests. No test depends on measured times, so that none fails on a busy machine."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Counts the tests that are skipped because published files of benchmarks are missing.
pytest_plugins = ("tests.evaluation.published",)
