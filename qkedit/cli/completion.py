"""Shell completion of option values, without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Completer = Callable[[str], list[str]]


def among(*values: str) -> Completer:
    """Return a completer for an option with a fixed set of values."""

    def complete(incomplete: str) -> list[str]:
        return _starting(incomplete, values)

    return complete


layers = among("all", "mid")
heads = among("all")
channels = among("full", "symmetric", "antisymmetric")
controls = among("none", "index", "norm")
products = among("raw", "folded")
protections = among("none", "sink")
roles = among("none", "induction")
layouts = among("full", "delta", "lora")
links = among("auto", "copy", "reflink", "hard", "symlink")
devices = among("auto", "cpu", "cuda", "mps")
compute_dtypes = among("float32", "float64")
device_maps = among("auto", "balanced", "balanced_low_0", "sequential")
attention = among("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
quantizations = among("bnb-4bit", "bnb-8bit", "torchao-int8")
worlds = among("crowded", "small")
dtypes = among("auto", "float32", "bfloat16", "float16")


def models(incomplete: str) -> list[str]:
    """Complete the aliases of models; directories are completed by the shell itself."""
    from qkedit.checkpoint.presets import presets_by_alias
    from qkedit.demo import DEMOS

    return _starting(incomplete, (*DEMOS, *sorted(presets_by_alias())))


def benchmarks(incomplete: str) -> list[str]:
    """Complete the names of benchmarks and, after a dot, those of their splits."""
    from qkedit.evaluation.benchmarks.registry import benchmark_named, benchmark_names

    name, dot, _ = incomplete.partition(".")
    if dot and name in benchmark_names():
        return _starting(incomplete, (f"{name}.{split}" for split in benchmark_named(name).splits))
    return _starting(incomplete, benchmark_names())


def plugins(incomplete: str) -> list[str]:
    """Complete the names of plug-ins."""
    from qkedit.plugins.registry import plugin_names

    return _starting(incomplete, (*plugin_names(), "none"))


def _starting(incomplete: str, values: Iterable[str]) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]


# By a flag's name, which means the same in every command. Other flags have no fixed values.
OF_FLAGS: dict[str, Completer] = {
    "--attn-implementation": attention,
    "--base": models,
    "--benchmark": benchmarks,
    "--channel": channels,
    "--compute-dtype": compute_dtypes,
    "--control": controls,
    "--device": devices,
    "--device-map": device_maps,
    "--dtype": dtypes,
    "--heads": heads,
    "--layers": layers,
    "--layout": layouts,
    "--link": links,
    "--model": models,
    "--plugin": plugins,
    "--product": products,
    "--protect": protections,
    "--quantization": quantizations,
    "--spare": roles,
    "--world": worlds,
}
