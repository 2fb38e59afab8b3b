"""The search space of edits: alternatives of layers, heads, modes, channel, kept share, and what an edit leaves alone.

A sweep goes through all of a space, `tune` through a part of it. This module does not import torch, so that a command
can refuse an invalid request quickly.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import prod
from typing import Any

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.errors import UsageError
from qkedit.laboratory.arms import Arm, controls
from qkedit.selection import describe, select_heads, select_layers
from qkedit.spectral.sink import protection_text
from qkedit.spectral.suppression import Channel, Control, Suppression
from qkedit.steering.steer_options import Product, Role, SteerOptions

# The alternative that stands for every single layer, or every single head.
EACH = "each"
ALL = "all"
# The symmetric channel comes first in every order: its edits cost a fraction of the others (docs/laboratory.md).
MILDEST_FIRST: tuple[Channel, ...] = ("symmetric", "antisymmetric", "full")


def less_usual(product: Product, protect: int, spare: Role) -> str:
    """Return an edit's less usual options, to be put behind the others: `, folded, protect sink:4`."""
    folded = f", {product}" if product != "raw" else ""
    protected = f", protect {protection_text(protect)}" if protect else ""
    spared = f", spare {spare}" if spare != "none" else ""
    return f"{folded}{protected}{spared}"


@dataclass(frozen=True)
class Candidate:
    """One edit of a space; either `k` or `energy` is None. The fields are those of `SteerOptions`."""

    layers: str
    heads: str
    k: int | None
    energy: float | None
    channel: Channel
    retain: float
    protect: int = 0
    spare: Role = "none"
    product: Product = "raw"

    @property
    def modes(self) -> str:
        """`k 4`, or `energy 0.3`."""
        return f"k {self.k}" if self.energy is None else f"energy {self.energy:g}"

    @property
    def name(self) -> str:
        """The name of the edit for people, unique in a space."""
        heads = "" if self.heads == ALL else f", heads {self.heads}"
        others = less_usual(self.product, self.protect, self.spare)
        return f"layers {self.layers}{heads}, {self.modes}, {self.channel}, retain {self.retain:g}{others}"

    def options(self, device: str = "cpu") -> SteerOptions:
        """Return the options of `steer` for this edit."""
        k = Suppression.k if self.k is None else self.k
        return SteerOptions(
            self.layers,
            self.heads,
            Suppression(k, self.energy, self.retain, self.channel),
            device=device,
            protect=self.protect,
            spare=self.spare,
            product=self.product,
        )

    def arm(self, device: str = "cpu") -> Arm:
        """Return the arm of this edit."""
        return Arm(self.name, self.options(device))

    def controls(self, kind: Control, seeds: int, device: str = "cpu") -> tuple[Arm, ...]:
        """Return matched random edits: with the same layers, heads, channel, number of modes and kept share."""
        return controls(self.options(device), kind, seeds, f"{self.name}, {kind} control")

    def command(self, model: str, revision: str | None = None) -> str:
        """Return the command line that writes a model with this edit."""
        words = ["qkedit", "steer", model, *(["--revision", revision] if revision else [])]
        words += ["--layers", self.layers, *([] if self.heads == ALL else ["--heads", self.heads])]
        words += ["--k", str(self.k)] if self.energy is None else ["--energy", repr(self.energy)]
        words += [] if self.channel == "full" else ["--channel", self.channel]
        words += [] if self.product == "raw" else ["--product", self.product]
        words += [] if self.retain == 0 else ["--retain", repr(self.retain)]
        words += ["--protect", protection_text(self.protect)] if self.protect else []
        words += [] if self.spare == "none" else ["--spare", self.spare]
        return shlex.join([*words, "--out", "./edited"])

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class SearchSpace:
    """Every combination of these alternatives is an edit.

    Attributes:
        layers: layers, each in the form of `--layers`; `each` stands for every single layer.
        heads: heads, each in the form of `--heads`; `each` stands for every single head.
        ks: numbers of modes per head.
        energies: shares of the energy, each an alternative to a number of modes.
        channels: channels of the product.
        retains: kept shares of each mode.
        protects: numbers of protected query directions; those above 0 are for the full channel alone.
        spares: roles of the heads that are left alone.
        products: products whose modes are suppressed.
    """

    layers: tuple[str, ...]
    heads: tuple[str, ...] = (ALL,)
    ks: tuple[int, ...] = (1, 2, 4, 8)
    energies: tuple[float, ...] = ()
    channels: tuple[Channel, ...] = ("full",)
    retains: tuple[float, ...] = (0.0,)
    protects: tuple[int, ...] = (0,)
    spares: tuple[Role, ...] = ("none",)
    products: tuple[Product, ...] = ("raw",)

    def __post_init__(self) -> None:
        """Refuse values that no edit can have. Raises UsageError."""
        if not self.ks and not self.energies:
            raise UsageError("no number of modes is given", where="--k", remedy="give --k 1,4 or --energy 0.1,0.3")
        for channel in self.channels:
            Suppression(channel=channel)
        for (k, energy), (channel, protect), retain, spare, kind in product(
            self._modes(), self._parts(), self.retains, self.spares, self.products
        ):
            Candidate("0", ALL, k, energy, channel, retain, protect, spare, kind).options()

    def __len__(self) -> int:
        """Return the number of edits."""
        return prod(map(len, self.dimensions().values()))

    def candidates(self) -> tuple[Candidate, ...]:
        """Return all edits, the mildest of the same layers first."""
        return tuple(
            Candidate(layers, heads, k, energy, channel, retain, protect, spare, kind)
            for layers, heads, (channel, protect), spare, kind, (k, energy), retain in product(
                self.layers,
                self.heads,
                self._parts(),
                sorted(self.spares, key="none".__eq__),
                self.products,
                self._modes(),
                sorted(self.retains, reverse=True),
            )
        )

    def dimensions(self) -> Mapping[str, Sequence[Any]]:
        """Return the alternatives of each dimension, by name; neighbours are alike in those that have an order."""
        return {
            "layers": self.layers,
            "heads": self.heads,
            "modes": self._modes(),
            "channel": self._parts(),
            "retain": sorted(self.retains),
            "spare": self.spares,
            "product": self.products,
        }

    def at(self, places: Mapping[str, int]) -> Candidate:
        """Return the edit with the alternatives at these places of the dimensions."""
        chosen = {name: alternatives[places[name]] for name, alternatives in self.dimensions().items()}
        (k, energy), (channel, protect) = chosen["modes"], chosen["channel"]
        plain = {name: chosen[name] for name in ("layers", "heads", "retain", "spare", "product")}
        return Candidate(k=k, energy=energy, channel=channel, protect=protect, **plain)

    def places(self, edit: Candidate) -> dict[str, int]:
        """Return the places of an edit's alternatives in the dimensions. Raises ValueError for another edit."""
        values = {**asdict(edit), "modes": (edit.k, edit.energy), "channel": (edit.channel, edit.protect)}
        return {name: list(options).index(values[name]) for name, options in self.dimensions().items()}

    def fitted(self, layers: Sequence[AttentionLayer], layer_count: int) -> SearchSpace:
        """Return the space for a model: `each` written out, and alternatives that mean the same merged.

        Layers are sorted by the number of layers and the first one, so that neighbours are alike.

        Args:
            layers: the model's layers that can be edited.
            layer_count: the number of its layers.

        Raises:
            UsageError: the model does not have a layer or a head.
        """
        available = sorted(layer.index for layer in layers)
        chosen: set[tuple[int, ...]] = set()
        for text in self.layers:
            if text == EACH:
                chosen |= {(index,) for index in available}
            else:
                chosen.add(tuple(select_layers(text, layer_count, available)))
        heads = min(layer.query_heads for layer in layers)
        named: dict[str, None] = {}
        for text in self.heads:
            if text == EACH:
                named |= dict.fromkeys(map(str, range(heads)))
            else:
                numbers = select_heads(text, heads)
                named[ALL if text == ALL else describe(numbers)] = None
        ordered = sorted(chosen, key=lambda indices: (len(indices), indices))
        return replace(self, layers=tuple(describe(indices) for indices in ordered), heads=tuple(named))

    def _parts(self) -> tuple[tuple[Channel, int], ...]:
        """Return the channels with the numbers of protected directions that each has, the mildest first.

        Where there is an alternative, a channel that cannot protect is left unprotected; else the edit is refused.
        """
        optional = 0 in self.protects and "full" in self.channels
        return tuple(
            (channel, protect)
            for channel in sorted(self.channels, key=MILDEST_FIRST.index)
            for protect in sorted(self.protects, reverse=True)
            if channel == "full" or not protect or not optional
        )

    def _modes(self) -> tuple[tuple[int | None, float | None], ...]:
        return (*((k, None) for k in self.ks), *((None, energy) for energy in self.energies))
