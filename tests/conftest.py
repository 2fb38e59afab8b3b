"""What holds of all tests: none judges by the clock, so that a busy machine fails none."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Counts the tests that are skipped for want of the benchmarks' published files.
pytest_plugins = ("tests.evaluation.published",)
