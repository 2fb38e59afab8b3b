"""The registry of benchmarks: those of this package, and those that installed packages name with an entry point.

A package adds a benchmark with an entry point of the group `qkedit.benchmarks` (docs/adding-a-benchmark.md):

    [project.entry-points."qkedit.benchmarks"]
    animals = "my_package.animals:Animals"

A class is imported when it is named, so that nobody waits for the language libraries of other benchmarks.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint

from qkedit.errors import QkeditError, UsageError, did_you_mean, first_sentence
from qkedit.evaluation.benchmarks.benchmark import Benchmark
from qkedit.other_packages import load_entry_point, package_of, points_of_other_packages

ENTRY_POINTS = "qkedit.benchmarks"
_PACKAGE = "qkedit.evaluation.benchmarks"
_BUILT_IN = {
    "pope": "pope:Pope",
    "repope": "repope:RePope",
    "chair": "chair.benchmark:Chair",
    "mme": "mme.benchmark:Mme",
    "amber": "amber.benchmark:Amber",
    "hallusionbench": "hallusionbench.benchmark:HallusionBench",
    "coco-caption": "coco_caption.benchmark:CocoCaption",
    "custom": "custom:CustomQuestions",
    "choice": "choice:Choice",
}


def benchmark_names() -> tuple[str, ...]:
    """Return the names of all benchmarks: those of this package, then those of installed packages in order."""
    return (*_BUILT_IN, *sorted(points_of_other_packages(ENTRY_POINTS).keys() - _BUILT_IN.keys()))


@cache
def benchmark_named(name: str) -> Benchmark:
    """Return the benchmark of this name.

    Raises:
        UsageError: there is no such benchmark.
        QkeditError: another package's benchmark cannot be imported, or is not a benchmark.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        benchmark: Benchmark = getattr(import_module(f"{_PACKAGE}.{module}"), attribute)()
        return benchmark
    points = points_of_other_packages(ENTRY_POINTS)
    if name not in points:
        raise UsageError(f"there is no benchmark {name!r}", remedy=did_you_mean(name.lower(), benchmark_names()))
    found = load_entry_point(points[name], "benchmark", "--benchmark")
    if not (isinstance(found, type) and issubclass(found, Benchmark)):
        raise _not_one(points[name], "is not a subclass of qkedit's Benchmark")
    if getattr(found, "name", None) != name:
        raise _not_one(points[name], f"calls itself {getattr(found, 'name', None)!r}")
    try:
        return found()
    except Exception as error:  # a third party's class may raise anything
        raise _not_one(points[name], f"cannot be created ({first_sentence(error)})") from error


def _not_one(point: EntryPoint, what: str) -> QkeditError:
    return QkeditError(
        f"the benchmark {point.name} of the package {package_of(point)} {what}",
        where="--benchmark",
        remedy="see docs/adding-a-benchmark.md",
    )
