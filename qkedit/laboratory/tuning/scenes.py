"""The scenes of the miniature world as the questions of a search; the same as those of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from qkedit.demo.scenes import CAPTION_PROMPT
from qkedit.errors import UsageError
from qkedit.evaluation.files.records import Score
from qkedit.laboratory.answering.generation import EvalSetAnswers, run_eval_set
from qkedit.laboratory.eval_set import EvalSet, SceneRange, make_eval_set
from qkedit.laboratory.measures import MEASURES, Measure
from qkedit.laboratory.scoring import scores
from qkedit.laboratory.tuning.data import Answers, AskedModel
from qkedit.laboratory.worker import one_thread

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_CAPTION = "caption"


class SceneData:
    """Captions of scenes and yes/no questions about them; the first half is for the choice.

    Args:
        scenes: the scenes.

    Raises:
        UsageError: there are fewer than four.
    """

    measures: Mapping[str, Measure] = MEASURES

    def __init__(self, scenes: SceneRange) -> None:
        if scenes.count < 4:
            raise UsageError("each half needs two scenes", where="--scenes", remedy="give 4 or more, such as 500")
        self._scenes = scenes
        self._places: dict[str, tuple[EvalSet, int]] = {}
        halves = []
        for half in scenes.halves():
            eval_set = make_eval_set(half)
            units = tuple(str(scene.number) for scene in eval_set.scenes)
            self._places |= {unit: (eval_set, place) for place, unit in enumerate(units)}
            halves.append(units)
        self.choice, self.confirmation = halves

    @property
    def described(self) -> str:
        """The questions in words."""
        return f"{self._scenes.count} scenes of the {self._scenes.world} world"

    def identity(self) -> dict[str, Any]:
        """See `TuningData`."""
        return {
            "scenes": self._scenes.as_dict(),
            "questions": [make_eval_set(half).digest() for half in self._scenes.halves()],
        }

    def ask(self, model: AskedModel, units: Sequence[str]) -> Answers:
        """See `TuningData`."""
        eval_set = self._about(units)
        with one_thread():
            said = run_eval_set(model.loaded, eval_set)
        answers = {f"{unit} {_CAPTION}": caption for unit, caption in zip(units, said.captions, strict=True)}
        asked = zip(eval_set.asked, said.yes_no, strict=True)
        return answers | {f"{units[place]} {prompt}": text for (place, prompt), text in asked}

    def scores(self, units: Sequence[str], answers: Answers) -> Mapping[str, Score]:
        """See `TuningData`."""
        eval_set = self._about(units)
        captions = tuple(answers[f"{unit} {_CAPTION}"] for unit in units)
        yes_no = tuple(answers[f"{units[place]} {prompt}"] for place, prompt in eval_set.asked)
        return scores(eval_set, EvalSetAnswers(captions, yes_no))

    def pictures(self, units: Sequence[str], count: int) -> tuple[str, list[Picture]]:
        """See `TuningData`."""
        return CAPTION_PROMPT, [Image.fromarray(scene.image) for scene in self._about(units[:count]).scenes]

    def _about(self, units: Sequence[str]) -> EvalSet:
        """Return the questions about some units of one half, in the order of the units."""
        eval_set = self._places[units[0]][0]
        places = [self._places[unit][1] for unit in units]
        if places == list(range(len(eval_set.scenes))):
            return eval_set
        new = {place: number for number, place in enumerate(places)}
        captions = tuple(eval_set.captions[place] for place in places)
        images = {question.image for question in captions}
        splits = {
            split: tuple(question for question in questions if question.image in images)
            for split, questions in eval_set.splits.items()
        }
        asked = tuple((new[place], prompt) for place, prompt in eval_set.asked if place in new)
        return EvalSet(tuple(eval_set.scenes[place] for place in places), captions, splits, asked)
