"""The benchmarks' published files, which are no part of the project; tests that need them are skipped without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.paths import ROOT

_BESIDE = ROOT.parent / "shared" / "data"
# Read at import, before a fixture hides the environment.
DATA = Path(os.environ.get("QKEDIT_BENCHMARK_DATA", _BESIDE))

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' published files are not here")
