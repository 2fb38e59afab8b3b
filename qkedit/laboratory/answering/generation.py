"""Answer an evaluation set with a loaded model: greedy answers in batches, equal to those of single `generate` calls.

For models known to be causal, each picture is prefilled once for all its questions (`shared_pictures`), also with the
plug-ins whose effect does not depend on the question. Other plug-ins act on whole prompts (`whole_prompts`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from qkedit.laboratory.answering.batches import Request
from qkedit.laboratory.answering.repeats import CAUSAL_MODELS, equal_pictures_once, grouped_heads_kept
from qkedit.laboratory.answering.shared_pictures import SharedPictures, needs_no_question
from qkedit.laboratory.answering.whole_prompts import WholePrompts
from qkedit.laboratory.eval_set import EvalSet
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.generation import LoadedModel

CAPTION_TOKENS = 64
ANSWER_TOKENS = 16


@dataclass(frozen=True)
class EvalSetAnswers:
    """The answers of one arm.

    Attributes:
        captions: one per scene.
        yes_no: one per question in the evaluation set's `asked`.
        batches: the number of answers and the CPU seconds of each batch; the same batches for all arms that prefill in
            the same way. Empty for results that were written without them.
    """

    captions: tuple[str, ...]
    yes_no: tuple[str, ...]
    batches: tuple[tuple[int, float], ...] = field(default=(), compare=False)


def run_eval_set(
    loaded: LoadedModel,
    eval_set: EvalSet,
    plugins: Sequence[PluginSettings] = (),
    *,
    share_pictures: bool = True,
) -> EvalSetAnswers:
    """Return the model's answers to an evaluation set.

    Args:
        loaded: the model, with its weights already edited.
        eval_set: the evaluation set.
        plugins: the plug-ins to attach; a `dscr` without a depth uses the true depth of the scenes.
        share_pictures: whether to prefill each picture once for all its questions, where possible: for causal models,
            without plug-ins or with those whose effect does not depend on the question.

    Raises:
        UsageError: the plug-ins do not fit the model.
    """
    requests = [Request(place, q.prompt, CAPTION_TOKENS) for place, q in enumerate(eval_set.captions)]
    requests += [Request(scene, prompt, ANSWER_TOKENS) for scene, prompt in eval_set.asked]
    can_share = loaded.model.config.model_type in CAUSAL_MODELS and needs_no_question(plugins)
    answer = (SharedPictures if share_pictures and can_share else WholePrompts)(loaded, eval_set, tuple(plugins))
    said: dict[Request, str] = {}
    batches = []
    with torch.inference_mode(), equal_pictures_once(loaded.model), grouped_heads_kept(loaded.model):
        for batch in answer.batches(requests):
            started = time.process_time()
            said.update(answer(batch))
            batches.append((len(batch), time.process_time() - started))
    texts = [said[request] for request in requests]
    captions = len(eval_set.captions)
    return EvalSetAnswers(tuple(texts[:captions]), tuple(texts[captions:]), tuple(batches))
