"""Score the answers of an arm by the benchmarks' own rules: CHAIR and CIDEr for captions, POPE for questions.

CHAIR's vocabulary is the kinds of objects in the scenes' world, which need no synonyms and no language library. CIDEr
compares a caption with the scene's own, by plain words instead of the official tokens, which need Java.
"""

from __future__ import annotations

from dataclasses import replace

from qkedit.evaluation.benchmarks import pope
from qkedit.evaluation.benchmarks.chair import scoring as chair
from qkedit.evaluation.benchmarks.chair.words import Reading
from qkedit.evaluation.benchmarks.coco_caption import scoring as coco_caption
from qkedit.evaluation.files.records import Answer, Score
from qkedit.laboratory.answering.generation import EvalSetAnswers
from qkedit.laboratory.arms import Arm
from qkedit.laboratory.eval_set import EvalSet
from qkedit.laboratory.measures import CAPTIONS, QUALITY, Outcome
from qkedit.laboratory.worker import JobResult

# The name of CHAIR's rule with this vocabulary.
VARIANT = "demo"


def scored(arm: Arm, eval_set: EvalSet, result: JobResult) -> Outcome:
    """Return an arm's scores on an evaluation set."""
    return Outcome(
        arm, scores(eval_set, result.answers), result.seconds, result.energy_removed, result.relative_change
    )


def scores(eval_set: EvalSet, answers: EvalSetAnswers) -> dict[str, Score]:
    """Return the scores of the captions and of each split of the questions, by part of the evaluation set."""
    captions = [Answer(question.id, text) for question, text in zip(eval_set.captions, answers.captions, strict=True)]
    references = [
        replace(question, truth=(scene.caption,))
        for question, scene in zip(eval_set.captions, eval_set.scenes, strict=True)
    ]
    world = eval_set.scenes[0].world
    given = answers_by_split(eval_set, answers)
    return {
        CAPTIONS: chair.score(
            eval_set.captions, captions, rule=VARIANT, read=lambda text: Reading(world.mentions(text))
        ),
        QUALITY: coco_caption.score(references, captions, rule=coco_caption.WORDS),
        **{split: pope.score(questions, given[split], split=split) for split, questions in eval_set.splits.items()},
    }


def answers_by_split(eval_set: EvalSet, answers: EvalSetAnswers) -> dict[str, tuple[Answer, ...]]:
    """Return the answers to the questions of each split; each distinct question was asked once."""
    said = dict(zip(eval_set.asked, answers.yes_no, strict=True))
    place = {question.image: scene for scene, question in enumerate(eval_set.captions)}
    return {
        split: tuple(Answer(question.id, said[place[question.image], question.prompt]) for question in questions)
        for split, questions in eval_set.splits.items()
    }
