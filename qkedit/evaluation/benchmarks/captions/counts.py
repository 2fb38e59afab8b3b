"""The counts from which the figures of captions are computed."""

from __future__ import annotations

from collections.abc import Sequence

from qkedit.evaluation.files.records import CaptionItem


def caption_counts(items: Sequence[CaptionItem]) -> dict[str, int]:
    """Return the numbers of judged captions, mentions, objects and words, and of hallucinated ones."""
    return {
        "captions": len(items),
        "hallucinated_captions": sum(bool(item.hallucinated) for item in items),
        "mentions": sum(len(item.found) for item in items),
        "hallucinated_mentions": sum(len(item.hallucinated) for item in items),
        "true_objects": sum(len(item.truth) for item in items),
        "covered_objects": sum(len(item.covered) for item in items),
        "words": sum(item.words for item in items),
    }
