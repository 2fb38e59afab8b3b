"""Test shell completion of option values, without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from qkedit.checkpoint.io.copying import LinkMode
from qkedit.cli import completion
from qkedit.demo import SMALL_DEMO
from qkedit.evaluation.benchmarks.registry import benchmark_names
from qkedit.spectral.suppression import Channel, Control
from qkedit.steering.steer_options import ComputeDtype, Layout
from tests.cli.command import ROOT
from tests.cli.test_terminal import WITHOUT_TORCH, environment


@pytest.mark.parametrize(
    ("completer", "values"),
    [
        (completion.channels, get_args(Channel)),
        (completion.controls, get_args(Control)),
        (completion.compute_dtypes, get_args(ComputeDtype)),
        (completion.layouts, get_args(Layout)),
        (completion.links, tuple(mode.value for mode in LinkMode)),
        (completion.benchmarks, benchmark_names()),
    ],
)
def test_every_value_is_completed(completer: completion.Completer, values: tuple[str, ...]) -> None:
    assert sorted(completer("")) == sorted(values)
    assert completer(values[0]) == [value for value in values if value.startswith(values[0])]


def test_splits_plugins_and_aliases_are_completed() -> None:
    assert completion.benchmarks("pope.ad") == ["pope.adversarial"]
    assert {"scr", "dscr", "none"} <= set(completion.plugins(""))
    assert "qwen2-vl" in completion.models("qwen2")
    assert SMALL_DEMO in completion.models("")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("qkedit steer --channel s", ["symmetric"]),
        ("qkedit score hall", ["hallusionbench"]),
        ("qkedit eval --plugin ds", ["dscr"]),
    ],
)
def test_the_shell_receives_the_completions(words: str, offered: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + "from qkedit.cli.app import run; run()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(_QKEDIT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1)),
        check=False,
    )
    assert result.stdout.split() == offered
