"""Samplers: which edit to try next, and which trial to give up.

Both answers are functions of the trials of earlier rounds, the edits before it in its round and the seed, so that they
do not depend on which trial ends first, and a search that was killed goes on exactly as if it had not been. Optuna
(Akiba et al., KDD 2019) computes them: the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), and its
rule of the median. It is an extra (`pip install 'qkedit[tune]'`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

from qkedit.errors import QkeditError, UsageError
from qkedit.laboratory.tuning.space import ALL, Candidate, SearchSpace

if TYPE_CHECKING:
    import optuna

SamplerName = Literal["tpe", "random", "grid"]
# Trials at random before the estimator has anything to estimate from: Optuna's own number, and more where a space has
# more alternatives of layers, up to a limit.
STARTUP_TRIALS, MOST_STARTUP_TRIALS = 10, 24
# Finished trials before one is given up.
STARTUP_PRUNING = 5
# In a space of alternatives the estimator proposes the same edit again and again; after these, one is drawn.
_PROPOSALS = 16


@dataclass(frozen=True)
class PastTrial:
    """A finished trial as a sampler sees it.

    Attributes:
        edit: the edit.
        costs: the cost after each part of the questions; empty if nothing was asked.
        given_up: whether it was given up before the last part.
    """

    edit: Candidate
    costs: tuple[float, ...]
    given_up: bool


@dataclass
class _Known:
    """Optuna's study, and the trials that it holds."""

    study: optuna.Study | None = None
    trials: tuple[PastTrial, ...] = ()


@dataclass(frozen=True)
class Sampler:
    """The order in which edits of a space are tried.

    Attributes:
        space: the space.
        name: `tpe`, `random`, or `grid` for the space's own order.
        seed: the seed of all draws.
        first: edits to begin with, where the space holds them.
        prunes: whether hopeless trials are given up.
    """

    space: SearchSpace
    name: SamplerName = "tpe"
    seed: int = 0
    first: tuple[Candidate, ...] = ()
    prunes: bool = True
    _known: _Known = field(default_factory=_Known, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse an unknown sampler, or one whose library is not installed. Raises QkeditError."""
        if self.name not in get_args(SamplerName):
            raise UsageError(
                f"there is no sampler {self.name!r}", where="--sampler", remedy="take tpe, random or grid"
            )
        if self.name == "tpe" or self.prunes:
            require_optuna()

    def next(self, past: Sequence[PastTrial], chosen: Sequence[Candidate] = ()) -> Candidate | None:
        """Return the next edit; None if all have been tried.

        Args:
            past: the trials of earlier rounds.
            chosen: the edits that were chosen for this round already.
        """
        tried = [*(trial.edit for trial in past), *chosen]
        seen = set(tried)
        left = [edit for edit in self.space.candidates() if edit not in seen]
        if not left:
            return None
        for edit in self.first:
            if edit in left:
                return edit
        if self.name == "grid":
            return left[0]
        if self.name == "tpe":
            if len(tried) < self.startup_trials:
                return self._random(len(tried)).choice(self._wide(left, tried))
            for attempt in range(_PROPOSALS):
                edit = self._proposal(past, chosen, attempt)
                if edit not in seen:
                    return edit
        return self._random(len(tried)).choice(left)

    @property
    def startup_trials(self) -> int:
        """The number of trials before the estimator is asked."""
        return min(max(STARTUP_TRIALS, len(self.space.layers)), MOST_STARTUP_TRIALS)

    def _wide(self, left: Sequence[Candidate], tried: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return those edits that take all heads, where there are any, of the layers that were tried least often.

        A layer shows in the figures when all its heads are edited; single heads are searched where a layer did.
        """
        wide = [edit for edit in left if edit.heads == ALL] or left
        times = Counter(edit.layers for edit in tried)
        least = min(times[edit.layers] for edit in wide)
        return [edit for edit in wide if times[edit.layers] == least]

    def gives_up(self, past: Sequence[PastTrial], costs: Sequence[float]) -> bool:
        """Return whether a trial is worse than the median of the others after as many parts.

        Args:
            past: the trials of earlier rounds.
            costs: the trial's cost after each part so far.
        """
        if not self.prunes:
            return False
        from optuna.trial import TrialState

        study = self._study(past)
        trial = study.ask()
        for step, cost in enumerate(costs):
            trial.report(cost, step)
        found = trial.should_prune()
        study.tell(trial, state=TrialState.FAIL)  # asked only for the rule, not a trial of the search
        return found

    def _proposal(self, past: Sequence[PastTrial], chosen: Sequence[Candidate], attempt: int) -> Candidate:
        """Return the estimator's proposal, with a constant liar for the other edits of the round.

        It takes them for bad ones, so that a round does not try neighbours of one edit only (Ginsbourger, Le Riche and
        Carraro, 2010). Optuna recommends it for trials that run at the same time.
        """
        import optuna
        from optuna.trial import TrialState, create_trial

        study, distributions = self._study(past), self._distributions()
        # A seed of its own for each question, whatever was asked before.
        seed = self._random(len(past) + len(chosen), attempt).getrandbits(31)
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, constant_liar=bool(chosen))
        held = len(study.get_trials(deepcopy=False))
        for edit in chosen:
            places = self.space.places(edit)
            study.add_trial(create_trial(state=TrialState.RUNNING, params=places, distributions=distributions))
        trial = study.ask(distributions)
        for number in range(held, trial.number + 1):  # none of them is a trial of the search
            study.tell(number, state=TrialState.FAIL)
        return self.space.at(trial.params)

    def _study(self, past: Sequence[PastTrial]) -> optuna.Study:
        """Return a study of the finished trials; those that it does not hold yet are added."""
        import optuna
        from optuna.trial import TrialState, create_trial

        known = self._known
        if known.study is None or known.trials != tuple(past[: len(known.trials)]):
            # Optuna logs a line per study, which users of qkedit do not need.
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_PRUNING)
            known.study, known.trials = optuna.create_study(pruner=pruner), ()
        known.study.add_trials(
            [
                create_trial(
                    state=TrialState.PRUNED if trial.given_up else TrialState.COMPLETE,
                    params=self.space.places(trial.edit),
                    distributions=self._distributions(),
                    value=trial.costs[-1] if trial.costs else None,
                    intermediate_values=dict(enumerate(trial.costs)),
                )
                for trial in past[len(known.trials) :]
            ]
        )
        known.trials = tuple(past)
        return known.study

    def _distributions(self) -> dict[str, Any]:
        """Return the places of each dimension; heads, channels and roles have no order."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        return {
            name: CategoricalDistribution(tuple(range(len(alternatives))))
            if name in ("heads", "channel", "spare", "product")
            else IntDistribution(0, len(alternatives) - 1)
            for name, alternatives in self.space.dimensions().items()
        }

    def _random(self, *numbers: int) -> random.Random:
        return random.Random("/".join(map(str, (self.seed, *numbers))))


def require_optuna() -> None:
    """Raise QkeditError with the remedy if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise QkeditError(
            "Optuna is not installed",
            where="--sampler",
            remedy="run: pip install 'qkedit[tune]', or take --sampler random --no-prune",
        )
