"""What is measured on a language model: loss, agreement with the unedited model, grammar and copying.

Every measurement is one item with the sums of its metrics; items of one group are not independent. Texts are our own
paragraphs (`english.txt`, a group each) and the topics of Python's own help, which come with every Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkedit.evaluation.files.records import MeasuredItem
from qkedit.evaluation.metric import Better, Metric, Unit, measured

LOSS = Metric("loss", Better.LOWER, Unit.NUMBER, measured("loss"))
SAME = Metric("same", Better.NEITHER, Unit.SHARE, measured("same"))
COPYING = Metric("copying", Better.HIGHER, Unit.SHARE, measured("copying"))
GRAMMAR = Metric("grammar", Better.HIGHER, Unit.SHARE, measured("grammar"))

CHUNK = 128  # tokens
HELP_CHUNKS = 5
# These topics are prose rather than tables of syntax.
TOPICS = ("objects", "execmodel", "import", "exceptions", "class", "try", "with", "typesmapping", "naming", "lambda")
COPIED, SEQUENCES, SEED = 64, 5, 0

# Pairs of a subject and a place; "The key near the cabinets is", "The keys near the cabinet are".
SUBJECTS = ("key", "author", "picture", "road", "letter", "teacher", "dog", "house", "student", "river", "car", "door")
PLACES = ("near the cabinet", "near the cabinets")


@dataclass(frozen=True)
class Material:
    """The tokens to measure on.

    Attributes:
        chunks: by id and group, the tokens of a text.
        sequences: random tokens, each sequence twice in a row, `[SEQUENCES, 2 · COPIED]`.
        sentences: by id and group, the tokens of a subject, and whether it is in the plural.
        verbs: the tokens of " is" and " are".
    """

    chunks: tuple[tuple[str, str, Tensor], ...]
    sequences: Tensor
    sentences: tuple[tuple[str, str, Tensor, bool], ...]
    verbs: tuple[int, int]

    def digest(self) -> str:
        """Return the SHA-256 of all tokens."""
        everything = [ids for _, _, ids in self.chunks] + [self.sequences.flatten()]
        everything += [ids for _, _, ids, _ in self.sentences]
        return hashlib.sha256(torch.cat(everything).numpy().tobytes()).hexdigest()


def material(tokenizer: Any, english: str) -> Material:
    """Return the tokens of all texts.

    Args:
        tokenizer: the model's.
        english: our own paragraphs, separated by empty lines.
    """
    chunks = [
        (f"own {place}", f"own {place}", _tokens(tokenizer, paragraph))
        for place, paragraph in enumerate(english.strip().split("\n\n"))
    ]
    words = " ".join(_help_texts())
    joined = _tokens(tokenizer, words)[: HELP_CHUNKS * CHUNK].split(CHUNK)
    chunks += [(f"help {place}", f"help {place}", ids) for place, ids in enumerate(joined)]
    generator = torch.Generator().manual_seed(SEED)
    special = len(tokenizer.all_special_ids) + 64  # special tokens come first
    drawn = torch.randint(special, len(tokenizer), (SEQUENCES, COPIED), generator=generator)
    verbs = [_tokens(tokenizer, verb).tolist() for verb in (" is", " are")]
    assert all(len(verb) == 1 for verb in verbs)
    sentences = tuple((text, group, _tokens(tokenizer, text), plural) for text, group, plural in _sentences())
    return Material(tuple(chunks), torch.cat([drawn, drawn], -1), sentences, (verbs[0][0], verbs[1][0]))


@torch.inference_mode()
def measure(model: Any, given: Material, before: Sequence[Tensor] | None) -> tuple[list[MeasuredItem], list[Tensor]]:
    """Return the items of a model, and its most probable next tokens of each chunk.

    Args:
        model: the model, edited or not.
        given: the tokens.
        before: the unedited model's most probable next tokens; None for the unedited model itself.
    """
    items, predicted = [], []
    for place, (name, group, ids) in enumerate(given.chunks):
        logits = model(ids[None], use_cache=False).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        best = logits.argmax(-1)
        predicted.append(best)
        same = len(best) if before is None else int((best == before[place]).sum())
        sums = {"loss": (float(losses.sum()), float(len(losses))), "same": (float(same), float(len(best)))}
        items.append(MeasuredItem(name, sums, group=group))
    for place, ids in enumerate(given.sequences):
        # Only the second half can be known: each of its tokens but the first follows one that was seen before.
        best = model(ids[None], use_cache=False, logits_to_keep=COPIED).logits[0, :-1].argmax(-1)
        right = float((best == ids[COPIED + 1 :]).sum())
        items.append(MeasuredItem(f"copied {place}", {"copying": (right, COPIED - 1.0)}, group=f"copied {place}"))
    for length in sorted({len(ids) for _, _, ids, _ in given.sentences}):
        batch = [sentence for sentence in given.sentences if len(sentence[2]) == length]
        ids = torch.stack([ids for _, _, ids, _ in batch])
        last = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        several = (last[:, given.verbs[1]] > last[:, given.verbs[0]]).tolist()
        for (name, group, _, plural), said in zip(batch, several, strict=True):
            items.append(MeasuredItem(name, {"grammar": (float(said == plural), 1.0)}, group=f"subject {group}"))
    return items, predicted


def having(items: Sequence[MeasuredItem], metric: Metric) -> list[MeasuredItem]:
    """Return the items that a metric sums."""
    return [item for item in items if metric.name in item.sums]


def pooled(repetitions: Sequence[Sequence[MeasuredItem]]) -> list[MeasuredItem]:
    """Return the mean of repetitions of the same measurements: each group's sums averaged."""
    means = []
    for same in zip(*repetitions, strict=True):
        sums = {
            name: tuple(sum(column) / len(same) for column in zip(*(item.sums[name] for item in same), strict=True))
            for name in same[0].sums
        }
        means.append(MeasuredItem(same[0].id, sums, group=same[0].group))
    return means


def _help_texts() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in TOPICS:
        yield " ".join(topics[name].replace("*", "").split())


def _sentences() -> Iterator[tuple[str, str, bool]]:
    """Yield subjects with a place whose noun has the same or the other number, their group, and the plural."""
    for subject in SUBJECTS:
        for plural in (False, True):
            for place in PLACES:
                yield f"The {subject}{'s' if plural else ''} {place}", subject, plural


def _tokens(tokenizer: Any, text: str) -> Tensor:
    ids: Tensor = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    return ids
