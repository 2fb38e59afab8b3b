"""Score captions against the reference captions of their images: BLEU, ROUGE-L, CIDEr-D, optional METEOR and SPICE.

The figures are those of pycocoevalcap. It works on whole sets of captions; here each caption has its own numbers, so
that groups of captions can be resampled: BLEU and METEOR are functions of summed counts, and the others are means.
CIDEr-D weighs words by their document frequency over all scored images. It is fixed before resampling, so two runs can
be compared if they were scored on the same images, which the `truth` of their items shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

from qkedit.evaluation.benchmarks.coco_caption import tokens
from qkedit.evaluation.benchmarks.coco_caption.meteor import meteor, meteor_counts
from qkedit.evaluation.benchmarks.coco_caption.overlap import bleu, bleu_counts, cider_d, rouge_l
from qkedit.evaluation.benchmarks.coco_caption.references import load_references
from qkedit.evaluation.benchmarks.coco_caption.spice import spice
from qkedit.evaluation.benchmarks.plain_functions import Answered, Scorer
from qkedit.evaluation.files.records import MeasuredItem, Question, Score
from qkedit.evaluation.metric import Better, Metric, Unit, measured

NAME = "coco-caption"
# lmms-eval's prompt for COCO's captions, which asks for one sentence.
PROMPT = "Provide a one-sentence caption for the provided image."
OFFICIAL, WORDS = "official", "words"
TOKENIZERS = {OFFICIAL: tokens.ptb, WORDS: tokens.words}
METRICS = (
    *(Metric(f"bleu_{order}", Better.HIGHER, Unit.SHARE, measured("bleu"), bleu(order)) for order in range(1, 5)),
    Metric("rouge_l", Better.HIGHER, Unit.SHARE, measured("rouge_l")),
    Metric("cider", Better.HIGHER, Unit.HUNDREDTHS, measured("cider")),
    Metric("meteor", Better.HIGHER, Unit.SHARE, measured("meteor"), meteor),
    Metric("spice", Better.HIGHER, Unit.SHARE, measured("spice")),
    Metric("mean_words", sums=measured("words")),
)
# The names that pycocoevalcap prints.
_PRINTED = {
    **{f"bleu_{order}": f"Bleu_{order}" for order in range(1, 5)},
    "meteor": "METEOR",
    "rouge_l": "ROUGE_L",
    "cider": "CIDEr",
    "spice": "SPICE",
}
NOT_OFFICIAL = "words, not PTB tokens"


def load_questions(data: Path, split: str | None = None) -> tuple[Question, ...]:
    """Return one question for each image that has reference captions, in the order of the file.

    Args:
        data: a directory with COCO's `captions_val2014.json` or others of its form, or one such file.
        split: the name of one file without `captions_` and its ending.

    Raises:
        UsageError: there is no such split.
        QkeditError: a file is missing or broken.
    """
    fields = {"data": data.parent if data.is_file() else data}
    return tuple(
        Question(name, image.file_name, PROMPT, tuple(image.captions), group=name, fields=fields)
        for name, image in load_references(data, split).items()
    )


@Scorer
def score(given: Answered, *, also: Collection[str] = ()) -> Score:
    """Return the score of captions.

    Args:
        given: captions as answers to questions with the references of their images, by the images' ids. Every
            question of a split has to be answered; without a split, the answers choose the images. The rule is
            `official` (the default), which needs Java, or `words`.
        also: `meteor`, `spice` or both.

    Raises:
        QkeditError: answers and questions do not match, or Java or a program for it is missing.
    """
    variant = given.rule or OFFICIAL
    joined = given.joined_answered()
    asked = [question for question, _ in joined.pairs]
    items = _items(asked, [answer.text for _, answer in joined.pairs], variant, also)
    metrics = {metric.name: metric.value_of(items) for metric in metrics_of(items)}
    warnings = list(joined.warnings)
    if variant == WORDS:
        warnings.append(f"the tokens are {NOT_OFFICIAL}: figures are not comparable with published ones")
    if len(items) == 1:
        warnings.append("the CIDEr of a single image is always 0: the other scored images give words their weights")
    suffix = f" ({NOT_OFFICIAL})" if variant == WORDS else ""
    return Score(
        benchmark=NAME,
        split=given.split,
        rule=variant,
        rule_kind="variant",
        n=len(items),
        counts={
            "captions": len(items),
            "references": sum(len(question.truth) for question in asked),
            "tokens": int(sum(item.sums["bleu"][0] for item in items)),
            "reference_tokens": int(sum(item.sums["bleu"][1] for item in items)),
            **joined.counts,
        },
        metrics=metrics,
        printed={f"{name}{suffix}": f"{metrics[key]:.3f}" for key, name in _PRINTED.items() if key in metrics},
        items=items,
        warnings=tuple(warnings),
    )


def metrics_of(items: Sequence[MeasuredItem]) -> tuple[Metric, ...]:
    """Return the metrics that all of these items have; METEOR and SPICE are measured only on request."""
    measured_of_all = set.intersection(*(set(item.sums) for item in items))
    return tuple(metric for metric in METRICS if _SUMS.get(metric.name, metric.name) in measured_of_all)


# The name of a metric's numbers in items, if it is not the metric's own.
_SUMS = {**{f"bleu_{order}": "bleu" for order in range(1, 5)}, "mean_words": "words"}


def _items(
    questions: Sequence[Question], captions: Sequence[str], variant: str, also: Collection[str]
) -> tuple[MeasuredItem, ...]:
    tokenize = TOKENIZERS[variant]
    flat = iter(tokenize([reference for question in questions for reference in question.truth]))
    references = [list(islice(flat, len(question.truth))) for question in questions]
    said = tokenize(captions)
    columns: dict[str, list[tuple[float, ...]]] = {
        "bleu": [bleu_counts(*pair) for pair in zip(said, references, strict=True)],
        "rouge_l": [(rouge_l(*pair), 1.0) for pair in zip(said, references, strict=True)],
        "cider": [(value, 1.0) for value in cider_d(said, references)],
        "words": [(float(len(caption.split())), 1.0) for caption in captions],
    }
    if "meteor" in also:
        columns["meteor"] = meteor_counts(said, references)
    if "spice" in also:
        columns["spice"] = [(value, 1.0) for value in spice(said, references, questions[0].fields["data"])]
    truth = _digest(questions)
    return tuple(
        MeasuredItem(question.id, dict(zip(columns, numbers, strict=True)), truth, question.group)
        for question, numbers in zip(questions, zip(*columns.values(), strict=True), strict=True)
    )


def _digest(questions: Sequence[Question]) -> str:
    """Return a digest of all images that are scored together, with their references."""
    rows = sorted((question.id, question.truth) for question in questions)
    return f"{len(rows)} images, sha256 {hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}"
