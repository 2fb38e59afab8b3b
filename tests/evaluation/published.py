"""Find the benchmarks' published files, which are not part of the project; tests are skipped without them.

This module is also a pytest plug-in (tests/conftest.py loads it): at its end, a run prints how many tests were skipped
because files are missing, and fails if the files exist and tests were skipped nevertheless.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.paths import ROOT

_NEXT_TO_THE_PROJECT = ROOT.parent / "shared" / "data"
# Read at import, before a fixture hides the environment.
DATA = Path(os.environ.get("QKEDIT_BENCHMARK_DATA", _NEXT_TO_THE_PROJECT))
# The beginning of the reason of such a skip.
WITHOUT_DATA = "the benchmarks' published files are missing"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=WITHOUT_DATA)


def skip_without_data(what: str) -> None:
    """Skip the running test because a published file or its reader is missing."""
    pytest.skip(f"{WITHOUT_DATA}: {what}")


def there() -> Path | None:
    """Return the folder with the published files; None if it does not exist."""
    return next((place for place in (DATA, _NEXT_TO_THE_PROJECT) if place.is_dir()), None)


class SkipCount:
    """Count the tests that were skipped because of missing published files, including xdist's workers."""

    def __init__(self, data: Path | None) -> None:
        self.data = data
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record a skip whose reason is a missing file."""
        if report.skipped and isinstance(report.longrepr, tuple) and WITHOUT_DATA in report.longrepr[2]:
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run if tests were skipped although the files exist."""
        if self.skipped and self.data is not None and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print how many tests were skipped, and whether that is a failure."""
        if not self.skipped:
            return
        terminalreporter.write_line(f"{len(self.skipped)} tests were skipped: {WITHOUT_DATA}")
        if self.data is not None:
            terminalreporter.write_line(
                f"FAILED: {self.data} exists, so none of them may be skipped, the first of which is {self.skipped[0]}"
            )


def pytest_configure(config: pytest.Config) -> None:
    """Count in the reporting process, to which xdist's workers pass their reports."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipCount(there()))
