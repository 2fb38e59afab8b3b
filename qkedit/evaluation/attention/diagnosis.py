"""The result of an attention diagnosis: shares by layer, over all tokens and at mentions, and the visual ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qkedit.evaluation.statistics.auroc import Auroc


@dataclass(frozen=True)
class Shares:
    """The mean attention of some tokens in one layer; the five add up to 1.

    Attributes:
        first: the share at the prompt's first column, whatever it holds (the sink).
        before: the share at the other columns before the image.
        image: the share at image tokens.
        behind: the share at the rest of the prompt.
        generated: the share at the answer so far.
    """

    first: float
    before: float
    image: float
    behind: float
    generated: float

    @property
    def without_first(self) -> Mapping[str, float | None]:
        """The shares of the attention that does not go to the first column; None if all of it does."""
        rest = {name: share for name, share in asdict(self).items() if name != "first"}
        total = sum(rest.values())
        return {name: share / total if total > 0 else None for name, share in rest.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the shares for JSON."""
        return asdict(self) | {"without_first": dict(self.without_first)}


@dataclass(frozen=True)
class LayerAttention:
    """The attention of one layer.

    Attributes:
        layer: the index of the layer.
        kind: `full_attention`, `sliding_attention`, `linear_attention` …; a sliding layer sees its window alone.
        tokens: the shares of all tokens of the answers; None for a layer without attention.
        true: the shares of the tokens of true mentions; None without such tokens or without ground truth.
        hallucinated: the shares of the tokens of hallucinated mentions; None as for `true`.
    """

    layer: int
    kind: str
    tokens: Shares | None
    true: Shares | None = None
    hallucinated: Shares | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the layer for JSON."""
        own = {name: getattr(self, name) for name in ("tokens", "true", "hallucinated")}
        shares = {name: None if one is None else one.as_dict() for name, one in own.items()}
        return {"layer": self.layer, "kind": self.kind, **shares}


@dataclass(frozen=True)
class MentionRatio:
    """One mention of an object.

    Attributes:
        subject: the image, as the user named it.
        object: the mentioned object.
        text: the words of the answer.
        hallucinated: whether the image does not show it.
        place: the position of its first token in the answer, from 0; None for a mention without tokens.
        tokens: the number of its tokens.
        ratio: its visual attention ratio, mean over its tokens; None if it cannot be measured.
    """

    subject: str
    object: str
    text: str
    hallucinated: bool
    place: int | None
    tokens: int
    ratio: float | None


@dataclass(frozen=True)
class AttentionDiagnosis:
    """The attention of the tokens of answers.

    Attributes:
        answers: the number of answers.
        tokens: the number of their tokens, without special ones.
        layers: every layer of the decoder.
        mentions: every mention in the answers about images whose objects are known; None without ground truth.
        without_truth: the number of answers about images whose objects are not known; 0 without ground truth at all.
        ratio_layers: the layers of the visual attention ratio.
        ratio: the visual attention ratio, mean over all tokens; None if none of its layers attends to all columns.
        auroc: how well a low ratio tells hallucinated mentions from true ones; None without ground truth or ratio.
        auroc_of_place: the same for a late position in the answer, which is known without attention: later tokens
            attend more to the answer so far, and later mentions are more often hallucinated.
        chat_template: the model's chat template, in the form of run records.
    """

    answers: int
    tokens: int
    layers: tuple[LayerAttention, ...]
    mentions: tuple[MentionRatio, ...] | None
    without_truth: int
    ratio_layers: tuple[int, ...]
    ratio: float | None
    auroc: Auroc | None
    auroc_of_place: Auroc | None
    chat_template: Mapping[str, Any] | None = None

    def mean_ratio(self, *, hallucinated: bool) -> float | None:
        """Return the mean ratio of the mentions of one kind; None if there are none."""
        found = [
            mention.ratio
            for mention in self.mentions or ()
            if mention.hallucinated == hallucinated and mention.ratio is not None
        ]
        return sum(found) / len(found) if found else None

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis for JSON."""
        return {
            "answers": self.answers,
            "tokens": self.tokens,
            "layers": [layer.as_dict() for layer in self.layers],
            "visual_attention_ratio": {
                "layers": list(self.ratio_layers),
                "tokens": self.ratio,
                "true": self.mean_ratio(hallucinated=False),
                "hallucinated": self.mean_ratio(hallucinated=True),
                "auroc": None if self.auroc is None else asdict(self.auroc),
                "auroc_of_place": None if self.auroc_of_place is None else asdict(self.auroc_of_place),
            },
            "without_truth": self.without_truth,
            "mentions": None if self.mentions is None else [asdict(mention) for mention in self.mentions],
            "chat_template": self.chat_template,
        }
