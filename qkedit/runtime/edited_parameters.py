"""Parameters of a loaded model with the edits that are in effect on them.

A parameter keeps the weights that it had before any edit, and the changes that were made to it, each with the weights
before and after it. What is in the model follows from which changes are in effect alone, not from the order in
which they were switched: the original weights without any, and else those weights with the changes in effect, in the
order in which they were made. A change gives its own bits wherever it meets the weights that it was made from, and is
added elsewhere.
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
    """One parameter, the weights it had before all edits, and the changes in effect; see `of`."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self.original = parameter.detach().clone()
        self._changes: list[tuple[Change, bool]] = []  # in the order they were made, with whether they are in effect

    @classmethod
    def of(cls, parameter: nn.Parameter) -> EditedParameter:
        """Return the record of a parameter, a new one where no edit of it is known."""
        # The record holds the parameter, so no other one can have its identity meanwhile.
        found = _known.get(id(parameter))
        if found is None:
            found = _known[id(parameter)] = cls(parameter)
        return found

    @property
    def current(self) -> Tensor:
        """A copy of the weights that are in the model."""
        return self._parameter.detach().clone()

    def add(self, change: Change) -> None:
        """Take in a change, and put it into effect."""
        self._changes.append((change, True))
        self._write()

    def set(self, change: Change, *, enabled: bool) -> None:
        """Put a change into effect, or take it out."""
        self._changes = [(known, enabled if known is change else was) for known, was in self._changes]
        self._write()

    def forget(self, change: Change) -> None:
        """Take a change out for good."""
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
            # Edits that are rounded as they are stored stay so together. Not every device has float64.
            dtypes = {change.after.dtype for change in changes[:number]}
            dtype = dtypes.pop() if len(dtypes) == 1 else self.original.dtype
            now, before, after = (part.cpu().double() for part in (weights, change.before, change.after))
            changed = torch.where(now == before, after, now + (after - before))
            weights = rounded(torch.where(before == after, now, changed), dtype)
        return weights


# While somebody holds an edit of a parameter, all edits of it share one record of what was there before.
_known: WeakValueDictionary[int, EditedParameter] = WeakValueDictionary()
