"""Tell whether an endpoint serves an edit, its base, or something else.

A server loads an adapter without an error even if its names match no module, and then serves the base. Only log
probabilities show whether an edit is active. The server returns those of the tokens of a few texts, s; those of the
base, b, and of the edited weights, e, are computed here, and s is projected on the line between them:

    share = ⟨s − b, e − b⟩ / ‖e − b‖²      0 for the base, 1 for the edit

with a standard error from the part of s that is off the line, which is the rounding of the server if it serves one of
the two. Texts without images suffice, since edited query weights act on every token.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qkedit.errors import QkeditError, VerificationError
from qkedit.evaluation.runs.endpoint import Endpoint
from qkedit.steering.base import needed_base
from qkedit.steering.manifest import read_manifest

if TYPE_CHECKING:
    from qkedit.runtime.loading import LoadedModel

PROBES = (
    "Is there a cup in the image? Yes, there is a cup on the table, and a person is sitting next to it.",
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "Please describe this image in detail. The image shows a red car parked in front of a small white house.",
    "Water boils at one hundred degrees, and it freezes at zero; between the two it is a liquid.",
    "The dog is behind the chair and the cat is in front of it, so the cat is closer to the camera than the dog.",
)
# The share may differ from 0 or 1 by this much, and its error must be small enough to tell the two apart.
_NEAR = 0.25
# The largest distance, in nats (root mean square), that rounding and quantisation of the same weights cause.
_FAR = 1.0
# The smallest effect of an edit, in nats, that is not lost in the rounding of a 16-bit server.
_SMALLEST_EFFECT = 1e-4

Verdict = Literal["edit", "base", "neither", "unclear"]


@dataclass(frozen=True)
class ServedEdit:
    """The model behind an endpoint, judged by log probabilities of the probes' tokens.

    Attributes:
        endpoint: the server's URL.
        model: the model's name there.
        tokens: the number of tokens compared.
        share: the place between base (0) and edit (1).
        error: the standard error of `share`.
        effect: the distance between base and edit, in nats (root mean square over the tokens).
        from_base: the distance of the server's values from the base's.
        from_edit: the distance of the server's values from the edit's.
    """

    endpoint: str
    model: str
    tokens: int
    share: float
    error: float
    effect: float
    from_base: float
    from_edit: float

    @property
    def verdict(self) -> Verdict:
        """Return which of the two is served; `unclear` if the server's rounding hides the difference."""
        if min(self.from_base, self.from_edit) > max(_FAR, self.effect):
            return "neither"
        if 2 * self.error > _NEAR:
            return "unclear"
        if abs(self.share - 1) <= _NEAR:
            return "edit"
        return "base" if abs(self.share) <= _NEAR else "neither"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the verdict as `--json` prints them."""
        return {**asdict(self), "verdict": self.verdict}

    def sentence(self) -> str:
        """Return the distances as text for the command line."""
        return (
            f"log probabilities of {self.tokens} tokens are {self.from_edit:.2g} nats from the edit's and "
            f"{self.from_base:.2g} from the base's"
        )

    def failure(self) -> QkeditError | None:
        """Return the error if the edit is not served or cannot be told from the base; None if it is served."""
        served = {"base": "serves the base", "neither": "serves neither the edit nor its base"}
        if self.verdict in served:
            return VerificationError(
                f"{served[self.verdict]} as {self.model}: {self.sentence()}",
                where=self.endpoint,
                remedy="load the edit there, or name it with --endpoint-model",
            )
        if self.verdict == "unclear":
            return QkeditError(
                f"rounds so much that the edit cannot be told from the base: {self.sentence()}",
                where=self.endpoint,
                remedy="serve it with --dtype float32, or give the server's own --dtype here",
            )
        return None


def located(endpoint: str, model: str, base: np.ndarray, edited: np.ndarray, served: np.ndarray) -> ServedEdit:
    """Return the position of the served log probabilities between those of the base and of the edit.

    Args:
        endpoint: the server's URL.
        model: the model's name there.
        base: log probabilities in nats, [tokens].
        edited: those of the same tokens under the edit.
        served: those of the server.

    Raises:
        QkeditError: base and edit do not differ on these tokens.
    """
    effect = edited - base
    squared = float(effect @ effect)
    if not _rms(effect) > _SMALLEST_EFFECT:
        raise QkeditError(
            "the edit does not change the log probabilities of any text by enough to be seen",
            where=endpoint,
            remedy="compare files with qkedit verify, without --endpoint",
        )
    share = float((served - base) @ effect) / squared
    rest = served - base - share * effect
    error = math.sqrt(float(rest @ rest) / max(1, len(rest) - 1) / squared)
    return ServedEdit(
        endpoint, model, len(base), share, error, _rms(effect), _rms(served - base), _rms(served - edited)
    )


def probe(
    endpoint: Endpoint,
    directory: str | Path,
    *,
    base: str | None = None,
    revision: str | None = None,
    **loading: Any,
) -> ServedEdit:
    """Compare the log probabilities of an endpoint with those of an edit and of its base.

    Args:
        endpoint: the server, with the name of the model there.
        directory: an output of `steer`, `apply` or `export`, in any layout.
        base: the model that was edited; a base on the hub and the demo are found by the manifest.
        revision: of a base on the hub.
        loading: `device`, `dtype` and the other arguments of `load`, for the base.

    Raises:
        UsageError: the base is not known.
        CheckpointError: the directory has no manifest, or is not an edit of the base.
        QkeditError: the base cannot be loaded, or the endpoint cannot be reached or gives no log probabilities.
    """
    from qkedit.runtime.editing import edit
    from qkedit.runtime.loading import load

    found = needed_base(read_manifest(Path(directory)), base, revision)
    # Check before the base is loaded that the server has the model and returns log probabilities.
    name = endpoint.name
    endpoint.log_probabilities((0, 1))
    loaded = load(found.model, revision=found.revision, **loading)
    texts = [_tokens(loaded, text) for text in PROBES]
    before = _log_probabilities(loaded, texts)
    with edit(loaded.model, [directory]):
        after = _log_probabilities(loaded, texts)
    served = np.concatenate([endpoint.log_probabilities(tokens) for tokens in texts])
    return located(endpoint.base_url, name, before, after, served)


def _tokens(loaded: LoadedModel, text: str) -> list[int]:
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    return [int(token) for token in tokenizer(text)["input_ids"]]


def _log_probabilities(loaded: LoadedModel, texts: list[list[int]]) -> np.ndarray:
    """Return the log probability of every token but the first of each text, in nats, [tokens]."""
    import torch

    values = []
    for tokens in texts:
        ids = torch.tensor([tokens], device=loaded.model.device)
        with torch.no_grad():
            logits = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        # Not every device has float64.
        chosen = logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        values.append(chosen.cpu().double().numpy())
    found = np.concatenate(values)
    if not np.isfinite(found).all():
        raise QkeditError("the next token has no finite probability", where=loaded.name, remedy="try --dtype float32")
    return found


def _rms(values: np.ndarray) -> float:
    return math.sqrt(float(values @ values) / len(values))
