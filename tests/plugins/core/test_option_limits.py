"""Test that options too large to compute with are refused before a model runs."""

import math

import pytest

from qkedit.errors import UsageError
from qkedit.plugins.settings import PluginSettings, make_plugins, parse_plugins

TOKENS = "9" * 400


@pytest.mark.parametrize("method", ["vcd", "icd", "sid", "crops", "deco", "pai-attention", "middle-layer"])
@pytest.mark.parametrize("alpha", ["1001", "1e38", "1e300"])
def test_too_large_weights_are_refused(method: str, alpha: str) -> None:
    with pytest.raises(UsageError, match=rf"^{method} alpha: .* is too large; give at most 1000\.$"):
        make_plugins(parse_plugins([f"{method}:alpha={alpha}"]) or ())


@pytest.mark.parametrize("option", ["m3id:decay", "crops:decay", "pai-contrast:gamma", "vaf:image", "vaf:before"])
def test_too_large_factors_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match="is too large"):
        make_plugins(parse_plugins([f"{option}=1e38"]) or ())


@pytest.mark.parametrize("option", ["sid:keep", "crops:keep", "crops:keep_text", "crops:more_text", "deco:top_k"])
@pytest.mark.parametrize("count", ["1000000001", "1" + "0" * 30, TOKENS])
def test_too_large_counts_of_tokens_are_refused(option: str, count: str) -> None:
    with pytest.raises(UsageError, match="is too large; give at most 1000000000") as refused:
        make_plugins(parse_plugins([f"{option}={count}"]) or ())
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize("keep", ["1e300", "1e18"])
def test_too_large_counts_written_as_floats_are_refused(keep: str) -> None:
    with pytest.raises(UsageError, match=r"sid keep: .* is too large"):
        make_plugins(parse_plugins([f"sid:keep={keep}"]) or ())


@pytest.mark.parametrize("name", ["vcd", "image-sum", "crops", "deco", "pai-attention", "middle-layer"])
@pytest.mark.parametrize(
    ("alpha", "fact"),
    [
        (math.inf, "inf is too large; give at most 1000"),
        (math.nan, "nan is not a number; give 0 or more"),
        (-math.inf, "-inf is negative; give 0 or more"),
        (-1.0, "-1.0 is negative; give 0 or more"),
    ],
)
def test_weights_of_a_wrong_type_are_refused(name: str, alpha: float, fact: str) -> None:
    with pytest.raises(UsageError) as refused:
        make_plugins([PluginSettings(name, {"alpha": alpha, **({"second": "a.png"} if name == "image-sum" else {})})])
    assert str(refused.value) == f"{name} alpha: {fact}."


def test_an_infinite_gamma_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^pai-contrast gamma: inf is too large; give at most 1000\.$"):
        make_plugins([PluginSettings("pai-contrast", {"gamma": math.inf})])


@pytest.mark.parametrize(
    "option", ["vcd:control={}", "vcd:seed={}", "scr:seed={}", "sid:start=-{}", "vcd:step={}", "kvsmooth:window=-{}"]
)
@pytest.mark.parametrize("digits", [400, 5000])
def test_long_numbers_are_abbreviated_in_errors(option: str, digits: int) -> None:
    with pytest.raises(UsageError, match=rf"\({digits} digits\)") as refused:
        make_plugins(parse_plugins([option.format("9" * digits)]) or ())
    assert len(str(refused.value)) < 150


@pytest.mark.parametrize("plugin", ["vcd:alpha=1000", "sid:keep=1000000000", "crops:keep=2.0", "vaf:image=1000"])
def test_the_limits_themselves_are_accepted(plugin: str) -> None:
    assert make_plugins(parse_plugins([plugin]) or ())
