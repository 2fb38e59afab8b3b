"""Track the edits of a loaded model's parameters.

A parameter keeps the weights that it had before any edit, and its changes, each with the weights before and after it.
The weights in the model depend only on which changes are active, not on the order in which they were switched: they
are the original weights with the active changes applied in the order in which they were made. A change reproduces its
own bits where it meets the weights that it was made from, and is added elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from qkedit.spectral.changes.combination import differs, rounded


@dataclass(frozen=True, eq=False)
class Change:
    """One edit's change of one parameter: the weights before it, and after it in the dtype they are rounded to."""

    before: Tensor
    after: Tensor


class EditedParameter:
    """One parameter, its weights before all edits, and the active changes; see `of`."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self.original = parameter.detach().clone()
        self._changes: list[tuple[Change, bool]] = []  # in the order they were made, with whether they are active

    @classmethod
    def of(cls, parameter: nn.Parameter) -> EditedParameter:
        """Return the record of a parameter, creating it at the first edit."""
        # The record holds the parameter, so no other object can get its identity in the meantime.
        found = _known.get(id(parameter))
        if found is None:
            found = _known[id(parameter)] = cls(parameter)
        return found

    @property
    def current(self) -> Tensor:
        """Return a copy of the weights in the model."""
        return self._parameter.detach().clone()

    @property
    def is_original(self) -> bool:
        """True if the model holds the weights from before all edits, bit for bit."""
        # Compared as bytes, in which NaN equals itself and −0 differs from 0.
        now, before = (weights.detach().contiguous().view(torch.uint8) for weights in (self._parameter, self.original))
        return torch.equal(now, before)

    def add(self, change: Change) -> None:
        """Add a change and activate it."""
        self._changes.append((change, True))
        self._write()

    def set(self, change: Change, *, enabled: bool) -> None:
        """Activate or deactivate a change."""
        self._changes = [(known, enabled if known is change else was) for known, was in self._changes]
        self._write()

    def forget(self, change: Change) -> None:
        """Remove a change for good."""
        self._changes = [(known, enabled) for known, enabled in self._changes if known is not change]
        self._write()

    def _write(self) -> None:
        with torch.no_grad():
            self._parameter.copy_(self._weights([change for change, enabled in self._changes if enabled]))

    def _weights(self, changes: list[Change]) -> Tensor:
        if not changes:
            return self.original
        if len(changes) == 1 and not differs(changes[0].before, self.original).any():
            return changes[0].after
        weights = self.original.cpu()
        for number, change in enumerate(changes, start=1):
            # Edits rounded to the storage dtype are combined in it as well. Not every device supports float64.
            dtypes = {change.after.dtype for change in changes[:number]}
            dtype = dtypes.pop() if len(dtypes) == 1 else self.original.dtype
            now, before, after = (part.cpu().double() for part in (weights, change.before, change.after))
            changed = torch.where(now == before, after, now + (after - before))
            weights = rounded(torch.where(before == after, now, changed), dtype)
        return weights


# As long as an edit of a parameter exists, all its edits share one record of the original weights.
_known: WeakValueDictionary[int, EditedParameter] = WeakValueDictionary()
