"""OPERA (arXiv 2311.17911): a beam search that goes back when an answer trusts one of its own tokens too much.

Each beam tries its likeliest tokens, its candidates. What a candidate c loses against the others of its beam grows
with the largest product of a column of attention among the answer's tokens (`over_trust.py`):

    log softmax over the candidates of   l_c − α · 10⁻⁷ · max_j Π_{i ≥ j} σ ω_{i,j}

In the first ten columns of the answer it gains α times its attention to the image instead. When the same column has
had the largest product in more than 15 steps of every beam, the search goes back to it and chooses other tokens after
it, from the whole vocabulary (`retrospection.py`). These rules are those of the published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from qkedit.errors import UsageError
from qkedit.plugins.core.decoding import Generation
from qkedit.plugins.core.generation_limits import OF_A_BRANCH, refuse_settings
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.option_limits import check_largest, check_weights
from qkedit.plugins.core.random_controls import check_control, control_generator
from qkedit.plugins.opera.search import OperaSearch, SearchSettings

# The largest number of texts that a model reads at once; each has a cache of its own.
_MOST_ROWS = 10_000
_REFUSED = (*OF_A_BRANCH, "do_sample", "return_dict_in_generate")


@dataclass(frozen=True)
class OPERA:
    """Settings of OPERA; the defaults are those of its published scripts.

    Attributes:
        beams: the number of beams.
        candidates: the number of tokens that each beam tries, and how often the search goes back to one column.
        alpha: α, the weight of the penalty, and of the attention to the image in the first columns.
        scale: σ, by which attention is multiplied before products are taken.
        threshold: how many steps may have their largest product in the same column; None to never go back.
        early: the number of first columns in which attention to the image counts instead of the penalty, and to which
            the search does not go back.
        control: the seed of a matched random control, which permutes the penalties at random among the candidates of
            each beam, and goes back to a column at random when the method would go back; None for the method itself.
    """

    name: ClassVar[str] = "opera"
    own_search: ClassVar[bool] = True

    beams: int = 5
    candidates: int = 5
    alpha: float = 1.0
    scale: float = 50.0
    threshold: int | None = 15
    early: int = 10
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings in themselves. Raises UsageError."""
        least = {"beams": 1, "candidates": 2, "threshold": 2, "early": 0}
        for option, smallest in least.items():
            value = getattr(self, option)
            if value is None:
                continue
            if value < smallest:
                raise UsageError(
                    f"{value} is too small", where=f"{self.name} {option}", remedy=f"give {smallest} or more"
                )
            check_largest(self.name, **{option: value})
        check_weights(self.name, alpha=self.alpha, scale=self.scale)
        each = self.candidates if self.alpha or self.threshold is not None else 1
        if self.beams * each > _MOST_ROWS:
            raise UsageError(
                f"{self.beams} beams with {each} tokens to try are {self.beams * each} texts at once",
                where=self.name,
                remedy=f"give fewer beams or candidates, at most {_MOST_ROWS} texts together",
            )
        check_control(self.control, self.name)

    def bind(self, modules: VLMModules) -> BoundOPERA:
        """Check the settings against a model. Raises UsageError if its vocabulary is smaller than the candidates."""
        vocabulary = modules.text_config.vocab_size
        if self.candidates > vocabulary:
            raise UsageError(
                f"the model has only {vocabulary} tokens",
                where=f"{self.name} candidates",
                remedy="give a smaller number, such as 5",
            )
        return BoundOPERA(self, modules.attention_layers[-1], control_generator(self.control))


@dataclass(frozen=True)
class BoundOPERA:
    """OPERA on one model."""

    settings: OPERA
    layer: int
    control: torch.Generator | None = None

    def start_decoding(self, generation: Generation) -> OperaSearch:
        """Begin one call of `generate`. Raises UsageError for settings that are not supported."""
        refuse_settings(generation, _REFUSED, OPERA.name)
        own = self.settings
        settings = SearchSettings(
            own.beams, own.candidates, own.alpha, own.scale, own.threshold, own.early, self.layer, self.control
        )
        return OperaSearch(settings, generation)
