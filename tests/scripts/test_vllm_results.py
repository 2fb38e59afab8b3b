"""Test the conclusions of the comparison on vLLM from its measurements, without vLLM."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.scripts.loading import SCRIPTS, load_script


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the folder of scripts on the path, since they import each other by name."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS / "vllm"), *sys.path])


def test_a_row_per_model_with_its_largest_difference() -> None:
    script = load_script("write_results")
    plain = {"difference": 1e-6, "36 at once": 3e-6, "effect": 0.0}
    edited = {"difference": 1e-6, "36 at once": 2e-6, "switched off": 4e-6, "effect": 0.5}
    models = {"demo-small": {"no plug-in": plain, "SCR": edited}}
    results = {
        "families-1": {"ranks": 1, "compiled": False, "models": models},
        "compiled": {"ranks": 1, "compiled": True, "models": models},
        "ranks": {"ranks": 2, "compiled": False, "models": models},
    }
    head, _, *rows = script.families(results)
    assert head == "| | no plug-in | SCR | least effect |"
    values = "3.0e-06 | 4.0e-06 | 0.5 |"
    assert rows == [
        f"| LLaVA-1.5 (demo-small) | {values}",
        f"| LLaVA-1.5 (demo-small), compiled | {values}",
        f"| LLaVA-1.5 (demo-small), 2 tensor-parallel ranks | {values}",
    ]


def test_the_whole_run_with_its_parts() -> None:
    results = {"run": {"seconds": 660, "cpu seconds": 900, "is new": False, "parts": {"edits": 71.4, "speed": 180}}}
    sentences = " ".join(load_script("write_results").run(results))
    assert sentences.startswith("The whole run took 11.0 minutes on ")
    assert sentences.endswith(
        "15 minutes of CPU time; it found the environment made. Seconds per part: edits 71, speed 180."
    )
    results["run"]["is new"] = True
    assert "found" not in " ".join(load_script("write_results").run(results))


def answer(tokens: list[int], *steps: dict[int, float]) -> Any:
    logprobs = [{token: SimpleNamespace(logprob=value) for token, value in step.items()} for step in steps]
    return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=logprobs)])


def test_the_largest_difference_of_each_prompt() -> None:
    values = np.array([[-1.0, -2.0], [-3.0, -4.0]])
    given = [answer([0, 1], {0: -1.0, 1: -2.5}, {1: -4.25}), answer([0, 0], {0: -1.0})]
    assert load_script("compare").compared(given, [([0, 1], values)] * 2) == [0.5, float("inf")]


@pytest.mark.parametrize(
    "changes",
    [
        {"difference": 1e-3},
        {"36 at once": float("inf")},
        {"switched off": 1e-3},
        {"same image": 1e-3},
        {"edited": 4},
        {"failed": 1},
        {"split": 1},
        {"effect": 0.0},
    ],
)
def test_a_wrong_or_meaningless_case_is_reported(changes: dict[str, float]) -> None:
    right = {"difference": 1e-5, "36 at once": 1e-5, "switched off": 1e-5, "same image": 0.0, "effect": 0.5}
    right |= {"edited": 5, "failed": 0, "split": 0}
    script = load_script("compare")
    assert script.failures({"no plug-in": right | {"effect": 0.0}, "SCR": right}) == []
    assert script.failures({"no plug-in": right | {"effect": 0.0}, "SCR": right | changes}) == ["SCR"]


@pytest.mark.parametrize(
    ("name", "found", "is_wrong"),
    [
        ("vLLM's own class, its defaults", {"difference": 1e-5}, False),
        ("vLLM's own class, its defaults", {"difference": 1e-3}, True),
        ("SCR", {"difference": 0, "edited": 5, "failed": 0, "split": 0}, False),
        ("SCR", {"difference": 0, "edited": 0, "failed": 0, "split": 0}, True),
        ("SCR", {"difference": 0, "edited": 5, "failed": 1, "split": 0}, True),
        ("SCR", {"difference": 0, "edited": 5, "failed": 0, "split": 1}, True),
        ("plug-ins, switched off", {"difference": 0, "edited": 0, "failed": 0, "split": 0}, False),
        ("plug-ins, switched off", {"difference": 0, "edited": 5, "failed": 0, "split": 0}, True),
    ],
)
def test_measurements_with_other_answers_or_without_plug_ins_are_errors(
    name: str, found: dict[str, float], is_wrong: bool
) -> None:
    assert load_script("speed").failures({name: found}) == ([name] if is_wrong else [])
