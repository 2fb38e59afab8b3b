"""Search a space of edits on one half of the questions, and confirm the best one on the other.

The first half is for the choice. The best of many edits looks better there than it is, so that one, its random
controls, `steer`'s default edit and the base then answer the second half, which is used for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import ceil, sqrt
from statistics import median

from qkedit.errors import UsageError
from qkedit.laboratory.arms import BASE, Arm
from qkedit.laboratory.measures import Outcome, figure
from qkedit.laboratory.tuning.confirmation import Confirmation, confirmation_of
from qkedit.laboratory.tuning.goal import Goal, value_of
from qkedit.laboratory.tuning.result import Ended, TrialResult, TuneReport
from qkedit.laboratory.tuning.sampler import PastTrial, Sampler
from qkedit.laboratory.tuning.space import ALL, Candidate, SearchSpace
from qkedit.laboratory.tuning.trial_runner import Effect, Told, Trial, TrialRunner, answers_of, effect_of
from qkedit.spectral.suppression import Control, Suppression

# The parts of the first half after which a trial may be given up, and the least number of units in one.
PARTS, LEAST_PART = 4, 8
# The share of the questions that trials are asked on average where hopeless ones are given up; for the estimate alone.
ASKED_SHARE = 0.7


@dataclass(frozen=True)
class SearchSettings:
    """How long to search, how many trials at once, and what to compare the best edit with.

    Attributes:
        trials: the number of trials, including those of an earlier run.
        controls: the number of random controls of the best edit.
        control: their kind.
        most_drift: the largest drift in nats; edits with a larger one are rejected before the questions. None for no
            limit.
        at_once: the number of trials of a round; all its edits are chosen before the results of any.
        workers: the number of processes that a round is spread over; None for one per GPU or CPU core.
    """

    trials: int = 60
    controls: int = 5
    control: Control = "index"
    most_drift: float | None = None
    at_once: int = 1
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense. Raises UsageError."""
        if self.trials < 1:
            raise UsageError(f"{self.trials} is not positive", where="--trials", remedy="give 1 or more, such as 60")
        if self.controls < 0:
            raise UsageError(f"{self.controls} is negative", where="--controls", remedy="give 0 or more, such as 5")
        if self.control == "none" and self.controls:
            raise UsageError("is not a control", where="--control", remedy="take index or norm, or --controls 0")
        if self.most_drift is not None and not self.most_drift > 0:
            raise UsageError(f"{self.most_drift} is not positive", where="--most-drift", remedy="give nats, such as 1")
        if self.at_once < 1:
            raise UsageError(f"{self.at_once} is not positive", where="--at-once", remedy="give 1 or more, such as 4")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"{self.workers} is not positive", where="--workers", remedy="give 1 or more")
        if self.workers is not None and self.workers > self.at_once:
            raise UsageError(
                f"{self.workers} workers share rounds of {self.at_once}",
                where="--workers",
                remedy=f"give --at-once {self.workers} or more, which changes the search, or fewer workers",
            )


@dataclass(frozen=True)
class Watch:
    """What a caller is told during a search.

    Attributes:
        trials: called with the number of finished trials and their total; first with the number from an earlier run.
        estimate: called once with the seconds that the rest of the search will take, if any of it is left.
    """

    trials: Callable[[int, int], None] = lambda done, total: None
    estimate: Callable[[float], None] = lambda seconds: None


def default_edit(layers: str) -> Candidate:
    """Return `steer`'s default edit, in these layers."""
    return Candidate(layers, ALL, Suppression.k, None, Suppression.channel, Suppression.retain)


@dataclass
class Search:
    """A search; `run` carries it out.

    Attributes:
        runner: the model and the questions.
        space: the space, fitted to the model.
        sampler: the order of the trials.
        goal: what edits are chosen by.
        settings: its length and the controls.
        default: `steer`'s default edit of the model.
        watch: what a caller is told.
    """

    runner: TrialRunner
    space: SearchSpace
    sampler: Sampler
    goal: Goal
    settings: SearchSettings
    default: Candidate
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        """Refuse controls that an edit of the space cannot have. Raises UsageError."""
        for channel in self.space.channels if self.settings.controls else ():
            Suppression(channel=channel, control=self.settings.control)
        self._parts = _parts(self.runner.data.choice)
        self._base: list[Outcome] = []
        self._base_seconds = 0.0

    def run(self) -> TuneReport:
        """Run what the journal does not hold yet, choose the best edit, and confirm it.

        Raises:
            QkeditError: an edit does not fit the model, the model cannot answer, or the journal cannot be written.
        """
        data = self.runner.data
        total = min(self.settings.trials, len(self.space))
        parts = [self._part(Arm(BASE), number) for number in range(1, len(self._parts) + 1)]
        told = self.runner.run(parts)
        # Its scores after each part, for trials that were asked as much.
        self._base = [
            self._outcome(Arm(BASE), self._units(part), told[:part], None) for part in range(1, len(told) + 1)
        ]
        base = self._base[-1]
        self._base_seconds = sum(part.seconds for part in told)
        is_begun = is_estimated = False
        past: list[PastTrial] = []
        results: list[TrialResult] = []
        while edits := self._round(past, total - len(results)):
            trials = [self._trial(edit, base, past, number) for number, edit in enumerate(edits, len(results) + 1)]
            # Trials of an earlier run take no time, so the count of this run's progress starts after them.
            if not is_begun and not all(self.runner.holds(edit.arm(self.runner.device)) for edit in edits):
                is_begun = True
                self.watch.trials(len(results), total)
            tell = partial(self._tell, len(results), total) if is_begun else _silent
            found = self.runner.run(trials, tell)
            results += [result for result, _ in found]
            past += [seen for _, seen in found]
            if self.runner.asked and not is_estimated:
                self.watch.estimate(self._seconds_left([result for result, _ in found], total - len(results)))
                is_estimated = True
        if not is_begun:
            self.watch.trials(len(results), total)
        best = self._best(results, base)
        confirmation = None if best is None else self._confirmed(best)
        return TuneReport(
            model=self.runner.model.name,
            revision=self.runner.model.revision,
            questions=data.described,
            goal=self.goal,
            halves=(len(data.choice), len(data.confirmation)),
            size=len(self.space),
            base={measure.name: value_of(base, measure) for measure in self.goal.shown},
            trials=tuple(results),
            best=best,
            confirmation=confirmation,
            most_drift=self.settings.most_drift,
            resumed=self.runner.resumed,
            seconds=self._base_seconds + sum(result.seconds for result in results),
        )

    def _units(self, parts: int) -> list[str]:
        """Return the units of the first parts."""
        return [unit for units in self._parts[:parts] for unit in units]

    def _part(self, arm: Arm, number: int) -> Trial[Told]:
        """Ask an arm a part of the first half, counted from 1."""
        return answers_of(arm, f"choice, part {number}", self._parts[number - 1])

    def _round(self, past: Sequence[PastTrial], most: int) -> list[Candidate]:
        """Return the edits of the next round; none if all have been tried."""
        chosen: list[Candidate] = []
        while len(chosen) < min(self.settings.at_once, most) and (edit := self.sampler.next(past, chosen)) is not None:
            chosen.append(edit)
        return chosen

    def _tell(self, before: int, total: int, done: int) -> None:
        self.watch.trials(before + done, total)

    def _trial(
        self, edit: Candidate, base: Outcome, past: Sequence[PastTrial], number: int
    ) -> Trial[tuple[TrialResult, PastTrial]]:
        """Run one trial; return its result, and what the sampler learns from it."""
        arm, data, goal = edit.arm(self.runner.device), self.runner.data, self.goal
        told: list[Told] = []
        costs: list[float] = []
        outcome: Outcome | None = None
        ended = Ended.FINISHED
        effect = yield from effect_of(arm)
        if effect.energy_removed is None:
            ended = Ended.NO_HEAD
        elif self._is_too_far(effect):
            ended = Ended.TOO_FAR
        for part in range(1, len(self._parts) + 1) if ended is Ended.FINISHED else ():
            told.append((yield from self._part(arm, part)))
            asked = self._units(part)
            outcome = self._outcome(arm, asked, told, effect)
            share = len(asked) / len(data.choice)
            # A few questions say little about a guard: its tolerance grows as the error of a mean does.
            costs.append(goal.cost(outcome, self._base[part - 1], sqrt(1 / share)))
            if part < len(self._parts) and self.sampler.gives_up(past, costs):
                ended = Ended.GIVEN_UP
                break
        finished = outcome is not None and ended is Ended.FINISHED
        result = TrialResult(
            number,
            edit,
            ended,
            effect,
            {} if outcome is None else {measure.name: value_of(outcome, measure) for measure in goal.shown},
            figure([outcome], base, goal.objective) if finished and outcome is not None else None,
            goal.broken(outcome, base) if finished and outcome is not None else (),
            round(effect.seconds + sum(part.seconds for part in told), 3),
        )
        return result, PastTrial(edit, tuple(costs), ended is not Ended.FINISHED)

    def _is_too_far(self, effect: Effect) -> bool:
        limit = self.settings.most_drift
        return limit is not None and effect.drift is not None and effect.drift > limit

    def _best(self, results: Sequence[TrialResult], base: Outcome) -> TrialResult | None:
        """Return the best finished trial that keeps the guards and is better than the base."""
        objective = self.goal.objective
        reference = value_of(base, objective)
        fitting = [
            (self.goal.gain(result.values[objective.name], reference), result)
            for result in results
            if result.ended is Ended.FINISHED and not result.broken
        ]
        # Among equal ones the one that moves the model least, then the first that was tried.
        best = max(fitting, key=lambda pair: (pair[0], -(pair[1].effect.drift or 0.0), -pair[1].number), default=None)
        return best[1] if best is not None and best[0] > 0 else None

    def _confirmed(self, best: TrialResult) -> Confirmation:
        """Ask base, default edit, best edit and controls the second half."""
        device = self.runner.device
        edit = best.edit
        asked = [Arm(BASE), *([] if edit == self.default else [self.default.arm(device)]), edit.arm(device)]
        random = edit.controls(self.settings.control, self.settings.controls, device)
        arms, units = (*asked, *random), self.runner.data.confirmation
        told = self.runner.run([answers_of(arm, "confirmation", units) for arm in arms])
        outcomes = {arm.name: self._outcome(arm, units, [one], None) for arm, one in zip(arms, told, strict=True)}
        default = None if edit == self.default else outcomes[self.default.name]
        controls = [outcomes[arm.name] for arm in random]
        return confirmation_of(self.goal, outcomes[BASE], outcomes[edit.name], controls, default)

    def _outcome(self, arm: Arm, units: Sequence[str], told: Sequence[Told], effect: Effect | None) -> Outcome:
        answers = {key: text for part in told for key, text in part.answers.items()}
        return Outcome(
            arm,
            self.runner.data.scores(units, answers),
            sum(part.seconds for part in told),
            None if effect is None else effect.energy_removed,
            None if effect is None else effect.relative_change,
        )

    def _seconds_left(self, first: Sequence[TrialResult], trials: int) -> float:
        """Estimate the seconds of more trials and the confirmation, from the base's answers and the first round."""
        units, workers = len(self.runner.data.choice), self.runner.workers
        whole = [result.seconds - result.effect.seconds for result in first if result.ended is Ended.FINISHED]
        # A median, since the first measurement of each worker takes longer.
        per_unit = median([self._base_seconds, *whole]) / units
        effect = median(result.effect.seconds for result in first)
        share = ASKED_SHARE if self.sampler.prunes and len(self._parts) > 1 else 1.0
        rounds, rest = divmod(trials, self.settings.at_once)
        seconds = 0.0
        for size, count in ((self.settings.at_once, rounds), (rest, 1 if rest else 0)):
            turns = ceil(size / workers)
            # Several workers wait for the slowest, which is likely to be asked everything.
            asked = turns * share if workers == 1 else (turns - 1) * share + 1
            seconds += count * (turns * effect + asked * per_unit * units)
        turns = ceil((3 + self.settings.controls) / workers)
        return seconds + turns * (effect + per_unit * len(self.runner.data.confirmation))


def _silent(done: int) -> None:
    """Tell nobody."""


def _parts(units: Sequence[str]) -> list[Sequence[str]]:
    """Return at most PARTS parts of nearly equal size, none with fewer than LEAST_PART units unless it is all."""
    count = max(1, min(PARTS, len(units) // LEAST_PART))
    bounds = [round(len(units) * number / count) for number in range(count + 1)]
    return [units[start:end] for start, end in pairwise(bounds)]
