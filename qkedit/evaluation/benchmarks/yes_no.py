"""Common parts of benchmarks with yes-or-no questions: parsers of answers, and counts and metrics of judged answers.

The parsers are those of published evaluations, with their quirks, since only figures from the same parser can be
compared. `yes` is the positive class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from qkedit.errors import UsageError
from qkedit.evaluation.benchmarks.plain_functions import Answered
from qkedit.evaluation.files.answer_files import Joined
from qkedit.evaluation.files.records import Score, YesNoItem
from qkedit.evaluation.metric import Better, Metric, Unit, ratio

# Parses an answer's text to a question with this truth: yes, no, or None for neither.
Parser = Callable[[str, str], str | None]


def official(text: str, truth: str) -> str:
    """POPE's own rule: `no` if the first sentence has the word No, no or not, else `yes`.

    Words are separated by single spaces after commas are removed, so that `NO`, `None`, `No!`, `No\\n` and an empty
    answer are `yes`, and `Yes, no doubt` is `no`.
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if "No" in words or "not" in words or "no" in words else "yes"


def opera(text: str, truth: str) -> str:
    """OPERA's rule (arXiv 2311.17911): `no` if the whole answer has the word No, not, no, NO or one ending in n't."""
    words = text.replace(".", "").replace(",", "").split(" ")
    return "no" if any(word in _OPERA_NO or word.endswith("n't") for word in words) else "yes"


def vcd(text: str, truth: str) -> str:
    """VCD's rule (arXiv 2311.16922): right if the true word is anywhere in the answer, even inside `nothing`."""
    if truth in text.lower():
        return truth
    return "no" if truth == "yes" else "yes"


def repope(text: str, truth: str) -> str | None:
    """RePOPE's rule (arXiv 2504.15707): `yes` if the answer contains it anywhere, else `no` likewise, else None."""
    lower = text.lower()
    if "yes" in lower:
        return "yes"
    return "no" if "no" in lower else None


_OPERA_NO = ("No", "not", "no", "NO")
PARSERS: Mapping[str, Parser] = {"official": official, "vcd": vcd, "opera": opera, "repope": repope}


def parser_named(name: str | None, default: str) -> tuple[str, Parser]:
    """Return a parser with its name. Raises UsageError if there is none of that name."""
    chosen = default if name is None else name
    if chosen not in PARSERS:
        raise UsageError(
            f"there is no parser {chosen!r}", where="--parser", remedy=f"choose among {', '.join(PARSERS)}"
        )
    return chosen, PARSERS[chosen]


def judge(joined: Joined, parse: Parser) -> tuple[YesNoItem, ...]:
    """Return one item per answer; an answer that the parser reads as neither does not count."""
    items = []
    for question, answer in joined.pairs:
        truth = str(question.truth)
        parsed = parse(answer.text, truth)
        items.append(
            YesNoItem(question.id, parsed, truth, parsed == truth, question.group, counted=parsed is not None)
        )
    return tuple(items)


def score_yes_no(benchmark: str, given: Answered, joined: Joined, default: str) -> Score:
    """Return the score of these pairs with the chosen parser, or with the default one.

    Raises:
        UsageError: there is no such parser.
    """
    name, parse = parser_named(given.rule, default)
    return _score_of(benchmark, given.split, name, joined, judge(joined, parse))


def _score_of(benchmark: str, split: str | None, parser: str, joined: Joined, items: Sequence[YesNoItem]) -> Score:
    """Return the score of judged answers, with the figures as POPE's script prints them."""
    counted = [item for item in items if item.counted]
    dropped = len(items) - len(counted)
    counts = confusion(counted)
    metrics = ratios(counts)
    warnings = list(joined.warnings)
    if dropped:
        warnings.append(f"{dropped} of {len(items)} answers are neither yes nor no and are dropped from every count")
    warnings += undefined(metrics)
    return Score(
        benchmark=benchmark,
        split=split,
        rule=parser,
        n=len(counted),
        counts={**counts, **({"dropped": dropped} if dropped else {}), **joined.counts},
        metrics=metrics,
        printed=_printed(counts, metrics),
        items=tuple(items),
        warnings=tuple(warnings),
    )


def confusion(items: Iterable[YesNoItem]) -> dict[str, int]:
    """Return the numbers of true and false positives (yes) and negatives."""
    counts = dict.fromkeys(("tp", "fp", "tn", "fn"), 0)
    for item in items:
        counts[("t" if item.right else "f") + ("p" if item.parsed == "yes" else "n")] += 1
    return counts


def ratios(counts: Mapping[str, int]) -> dict[str, float | None]:
    """Return accuracy, precision, recall, F1, the share of yes and HR = fp / (fp + tn), the hallucination rate of SCR.

    The arithmetic follows POPE's script step by step, so that every digit is the same. A figure is None where its
    denominator is zero.
    """
    tp, fp, tn, fn = (counts[name] for name in ("tp", "fp", "tn", "fn"))
    precision = quotient(tp, tp + fp)
    recall = quotient(tp, tp + fn)
    f1 = None
    if precision is not None and recall is not None:
        f1 = quotient(2 * precision * recall, precision + recall)
    total = tp + tn + fp + fn
    return {
        "accuracy": quotient(tp + tn, total),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": quotient(tp + fp, total),
        "hr": quotient(fp, fp + tn),
    }


def quotient(numerator: float, denominator: float) -> float | None:
    """Return the quotient, or None where the official scripts would fail."""
    return numerator / denominator if denominator else None


def undefined(metrics: Mapping[str, float | None]) -> list[str]:
    """Return the warning that names the metrics without a value, if there are any."""
    names = [name for name, value in metrics.items() if value is None]
    return [f"{', '.join(names)} cannot be calculated: the denominator is zero"] if names else []


def _printed(counts: Mapping[str, int], metrics: Mapping[str, float | None]) -> dict[str, str]:
    names = {
        "Accuracy": "accuracy",
        "Precision": "precision",
        "Recall": "recall",
        "F1 score": "f1",
        "Yes ratio": "yes_ratio",
    }
    figures = {printed: repr(metrics[name]) for printed, name in names.items() if metrics[name] is not None}
    return {name.upper(): str(counts[name]) for name in ("tp", "fp", "tn", "fn")} | figures


def _is_true(item: YesNoItem) -> bool:
    return item.parsed == item.truth == "yes"


# An answer that is neither yes nor no is wrong: a missed yes if the truth is yes, and never a hallucination.
METRICS = (
    Metric("accuracy", Better.HIGHER, Unit.SHARE, ratio(lambda item: (item.right, 1)), is_share_right=True),
    Metric("precision", Better.HIGHER, Unit.SHARE, ratio(lambda item: (_is_true(item), item.parsed == "yes"))),
    Metric(
        "recall",
        Better.HIGHER,
        Unit.SHARE,
        ratio(lambda item: (_is_true(item), item.truth == "yes")),
        loss="lost recall",
    ),
    Metric(
        "f1",
        Better.HIGHER,
        Unit.SHARE,
        ratio(lambda item: (2 * _is_true(item), (item.parsed == "yes") + (item.truth == "yes"))),
    ),
    Metric("yes_ratio", Better.NEITHER, Unit.SHARE, ratio(lambda item: (item.parsed == "yes", 1))),
    Metric(
        "hr",
        Better.LOWER,
        Unit.SHARE,
        ratio(lambda item: (item.parsed == "yes" and item.truth == "no", item.truth == "no")),
        is_hallucination=True,
    ),
)
