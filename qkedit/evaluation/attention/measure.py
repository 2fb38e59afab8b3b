"""Measure where the tokens of a model's answers attend, and whether hallucinated mentions attend less to the image.

The model answers the prompt about each image by greedy search, in batches, with `AttentionShares` after all other
plug-ins. With ground truth, the mentions of objects in the answers are found by CHAIR's rules and traced to the tokens
they consist of.

The visual attention ratio of a token (arXiv 2411.16724) is the share of its attention that goes to image tokens, mean
over heads and over the layers 5 to 17 of 32, or the same shares of another depth, that attend to all columns. That of
a mention is the mean over its tokens. Its AUROC is the probability that a hallucinated mention has a lower ratio than
a true one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.errors import UsageError
from qkedit.evaluation.attention.answer_tokens import token_ranges, tokens_of
from qkedit.evaluation.attention.diagnosis import AttentionDiagnosis, LayerAttention, MentionRatio, Shares
from qkedit.evaluation.attention.prompt_images import AskedImages, PromptImages
from qkedit.evaluation.statistics.auroc import Auroc, auroc
from qkedit.plugins.core.pictures import check_files
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.prompts import CAPTION_PROMPT

if TYPE_CHECKING:
    from torch import Tensor

    from qkedit.plugins.core.modules import VLMModules
    from qkedit.runtime.generation import Answer, LoadedModel

BATCH_SIZE = 8
MAX_NEW_TOKENS = 128


def diagnose(
    model: str,
    asked: AskedImages,
    *,
    prompt: str = CAPTION_PROMPT,
    plugins: Sequence[PluginSettings] = (),
    edits: Sequence[str] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
    **loading: Any,
) -> AttentionDiagnosis:
    """Measure the attention of a model's answers about some images.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        asked: the images, with or without their ground truth.
        prompt: the question about each of them.
        plugins: the plug-ins attached to the model.
        edits: directories of edits, which are applied together to the loaded weights.
        max_new_tokens: the maximum length of an answer.
        batch_size: the number of prompts per batch.
        on_answer: called with the number of finished answers and their total.
        loading: `revision`, `device`, `dtype` and the other arguments of `load`.

    Raises:
        UsageError: there are no images, one is not a picture, or the plug-ins do not fit the model.
        QkeditError: the model cannot be loaded or cannot answer.
    """
    from qkedit.plugins.core.generation_limits import refuse_own_search
    from qkedit.plugins.transformers.modules import vlm_modules
    from qkedit.runtime.editing import edit
    from qkedit.runtime.generation import load
    from qkedit.steering.sources.edit_source import open_edits

    if edits:
        open_edits(edits)  # an invalid edit is reported before the model is loaded
    if not asked.prompts:
        raise UsageError("there are no images", where="--images", remedy="name a directory with pictures")
    for shown in asked.prompts:
        shown.images()  # an invalid picture is reported before the model is loaded
    sources = [source for shown in asked.prompts for source in shown.sources]
    files = [source for source in sources if isinstance(source, Path)]
    made = make_plugins(plugins)
    refuse_own_search(made, "attention")
    check_files(made, files if len(files) == len(sources) else None)
    loaded = load(model, **loading)
    found = _Found(vlm_modules(loaded.model), asked)
    with edit(loaded.model, edits) if edits else nullcontext():
        for start in range(0, len(asked.prompts), batch_size):
            batch = asked.prompts[start : start + batch_size]
            for shown, answer in zip(batch, _answers(loaded, batch, prompt, plugins, max_new_tokens), strict=True):
                found.add(loaded, shown, answer)
            on_answer(start + len(batch), len(asked.prompts))
    return found.diagnosis(loaded.template_record)


def _answers(
    loaded: LoadedModel,
    batch: Sequence[PromptImages],
    prompt: str,
    plugins: Sequence[PluginSettings],
    max_new_tokens: int,
) -> Sequence[Answer]:
    from qkedit.plugins.measures.attention_shares import AttentionShares
    from qkedit.runtime.generation import Prompt, prompt_text, respond_batch

    pictures = [shown.images() for shown in batch]
    prompts = [Prompt(prompt_text(loaded, prompt, len(images)), images, prompt) for images in pictures]
    measuring = [*make_plugins(plugins), AttentionShares()]
    return respond_batch(loaded, prompts, measuring, max_new_tokens=max_new_tokens)


@dataclass
class _Sum:
    """The attention of some tokens, added up over them, `[layers, groups]`."""

    shares: Any = 0.0
    tokens: int = 0

    def add(self, shares: Tensor) -> None:
        """Add the attention of tokens, `[tokens, layers, groups]`."""
        self.shares = self.shares + shares.double().sum(dim=0)
        self.tokens += len(shares)

    def mean(self, place: int) -> Shares | None:
        """Return the mean in one of the measured layers."""
        return Shares(*(self.shares[place] / self.tokens).tolist()) if self.tokens else None


@dataclass
class _Found:
    """The findings so far in the answers of a model."""

    parts: VLMModules
    asked: AskedImages
    every: _Sum = field(default_factory=_Sum)
    of_mentions: dict[bool, _Sum] = field(default_factory=lambda: {False: _Sum(), True: _Sum()})
    ratios: list[float] = field(default_factory=list)
    mentions: list[MentionRatio] = field(default_factory=list)
    answers: int = 0
    without_truth: int = 0

    def add(self, loaded: LoadedModel, shown: PromptImages, answer: Answer) -> None:
        """Add one answer with the attention of its tokens."""
        from qkedit.plugins.measures.attention_shares import FIRST, IMAGE, AttentionShares, SharesReport

        assert answer.report is not None
        report = answer.report.plugins[AttentionShares.name]
        assert isinstance(report, SharesReport)
        self.answers += 1
        tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
        special = frozenset(tokenizer.all_special_ids)
        own = report.shares[answer.row, : len(answer.ids)]  # [tokens, layers, groups]
        said = [place for place, token in enumerate(answer.ids) if token not in special]
        self.every.add(own[said])
        at_image = own[..., IMAGE] + (own[..., FIRST] if report.image_first[answer.row] else 0)
        places = [self.parts.attention_layers.index(layer) for layer in self.ratio_layers]
        ratio = at_image[:, places].mean(dim=1).tolist() if places else None
        if ratio is not None:
            self.ratios += [ratio[place] for place in said]
        if self.asked.find is None:
            return
        if shown.truth is None:
            self.without_truth += 1
            return
        ranges = token_ranges(
            answer.ids, lambda ids: str(loaded.processor.decode(ids, skip_special_tokens=True)), special
        )
        for mention in self.asked.find(answer.text):
            tokens = tokens_of(mention, ranges)
            is_hallucinated = mention.object not in shown.truth
            self.of_mentions[is_hallucinated].add(own[list(tokens)])
            self.mentions.append(
                MentionRatio(
                    shown.name,
                    mention.object,
                    answer.text[mention.start : mention.end],
                    is_hallucinated,
                    tokens[0] if tokens else None,
                    len(tokens),
                    sum(ratio[place] for place in tokens) / len(tokens) if ratio is not None and tokens else None,
                )
            )

    @property
    def kinds(self) -> list[str]:
        """The kind of each layer."""
        count = len(self.parts.layers)
        return list(getattr(self.parts.text_config, "layer_types", None) or ["full_attention"] * count)[:count]

    @property
    def ratio_layers(self) -> tuple[int, ...]:
        """The layers of the visual attention ratio."""
        from qkedit.plugins.amplified.plugin import MiddleLayer

        kinds = self.kinds
        return tuple(
            layer
            for layer in MiddleLayer().by_default(len(kinds))
            if layer in self.parts.attention_layers and kinds[layer] == "full_attention"
        )

    def diagnosis(self, template: Any) -> AttentionDiagnosis:
        """Return the means over all answers."""
        layers = []
        for layer, kind in enumerate(self.kinds):
            if layer not in self.parts.attention_layers:
                layers.append(LayerAttention(layer, kind, None))
                continue
            place = self.parts.attention_layers.index(layer)
            of_kind = {hallucinated: one.mean(place) for hallucinated, one in self.of_mentions.items()}
            layers.append(LayerAttention(layer, kind, self.every.mean(place), of_kind[False], of_kind[True]))
        has_truth = self.asked.find is not None
        return AttentionDiagnosis(
            answers=self.answers,
            tokens=self.every.tokens,
            layers=tuple(layers),
            mentions=tuple(self.mentions) if has_truth else None,
            without_truth=self.without_truth,
            ratio_layers=self.ratio_layers,
            ratio=sum(self.ratios) / len(self.ratios) if self.ratios else None,
            auroc=self._auroc(lambda mention: None if mention.ratio is None else -mention.ratio),
            auroc_of_place=self._auroc(lambda mention: mention.place),
            chat_template=template,
        )

    def _auroc(self, score_of: Callable[[MentionRatio], float | None]) -> Auroc | None:
        """Return the AUROC of a score for hallucinated mentions; None without ground truth or scores."""
        judged = [(score, mention) for mention in self.mentions if (score := score_of(mention)) is not None]
        if not judged:
            return None
        return auroc(
            [score for score, _ in judged],
            [mention.hallucinated for _, mention in judged],
            [mention.subject for _, mention in judged],
        )
