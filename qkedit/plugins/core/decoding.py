"""The interface between a call of `generate` and plug-ins that act on decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.report import PluginReport


class Branch(Protocol):
    """The same model on changed inputs, decoded in step with an answer."""

    def logits(self, tokens: Tensor | None) -> Tensor:
        """Return the branch's logits of the next token, `[batch, vocabulary]` float32.

        Args:
            tokens: `[batch]`, the tokens that were added to the answer last; None before its first token.
        """
        ...

    def close(self) -> None:
        """End the branch. Does nothing if it has ended."""
        ...


class AttentionEdit:
    """An edit that reads a model's attention while it answers, and may hide columns from it.

    Attributes:
        watched_layers: the decoder layers in which `watch_attention` is called.
        masked_layers: the decoder layers in which the columns that `hidden_columns` returns are masked.
    """

    watched_layers: frozenset[int] = frozenset()
    masked_layers: frozenset[int] = frozenset()

    def watch_attention(self, layer: int, shares: Tensor) -> None:
        """Read the attention of the last column in a layer, after all edits of its scores.

        It is called in every forward pass, before `edit_logits` of the same pass. If a prompt runs in parts, it is
        called for each part; the last call before `edit_logits` is that of the prompt's last token.

        Args:
            layer: the decoder layer.
            shares: `[batch, heads, columns]` float32; each row adds up to 1, and the share of padding is 0. In a
                sliding layer, these are the last columns alone, since it drops those before its window.
        """

    def hidden_columns(self, layer: int, tokens: int, columns: int) -> Tensor:
        """Return the columns that no token of this forward pass attends to, except to itself.

        Args:
            layer: the decoder layer; `watch_attention` of the layers before it has been called in the same pass.
            tokens: the number of tokens per row in this forward pass: 1 for a token of the answer.
            columns: the number of columns that the layer holds: the last ones of prompt and answer so far.

        Returns:
            `[batch, columns]` bool.
        """
        raise NotImplementedError


class StartBranch(Protocol):
    """Run the model on other inputs in step with the answer."""

    def __call__(self, inputs: Mapping[str, Any], attention: AttentionEdit | None = None) -> Branch:
        """Return a branch. Prefill plug-ins act there too, decoding plug-ins do not.

        Args:
            inputs: the model inputs (`input_ids`, `attention_mask`, `pixel_values`, …; no settings of `generate`).
            attention: the edit of the attention in the branch.
        """
        ...


@dataclass(frozen=True)
class Generation:
    """One call of `generate` before it runs.

    Attributes:
        modules: the model's modules.
        inputs: the call's arguments by name: `input_ids` `[batch, length]`, `pixel_values`, `max_new_tokens`, …
        start_branch: run the model on other inputs in step with the answer; see `StartBranch`.
    """

    modules: VLMModules
    inputs: Mapping[str, Any]
    start_branch: StartBranch

    def setting(self, name: str) -> Any:
        """Return a setting of `generate`: the call's own, that of its `generation_config`, or the model's."""
        own, defaults = self.inputs.get("generation_config"), getattr(self.modules.model, "generation_config", None)
        for value in (self.inputs.get(name), getattr(own, name, None), getattr(defaults, name, None)):
            if value is not None:
                return value
        return None


class DecodingEdit(AttentionEdit):
    """One plug-in's actions during one call of `generate`; subclasses override what they need.

    The state of a request belongs here, not in the plug-in, since several requests may run concurrently.

    Attributes:
        edited_states: the decoder layers after which `edit_state` is called.
        observed_layers: the decoder layers after which `observe_layer` is called.
        scored_layers: the decoder layers in which `edit_scores` is called; only layers that attend to every column.
        needs_own_logits: whether `edit_logits` must receive the model's own logits, so that no plug-in that edits
            logits may be named before this one.
    """

    edited_states: frozenset[int] = frozenset()
    observed_layers: frozenset[int] = frozenset()
    scored_layers: frozenset[int] = frozenset()
    needs_own_logits: bool = False

    def edit_scores(self, layer: int, scores: Tensor) -> Tensor:
        """Return the edited attention scores of the prompt's last token or of an answer token.

        Args:
            layer: the decoder layer.
            scores: `[batch, heads, columns]` float32 before mask and softmax. The first columns are the prompt's,
                padding included.
        """
        return scores

    def edit_state(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the edited state of the prompt's last token or of an answer token after a decoder layer.

        Later layers, and their part of the cache, are computed from the edited state. It is not called in a preview.

        Args:
            layer: the decoder layer.
            hidden: `[batch, D]`; it must not be changed in place.
        """
        return hidden

    def observe_layer(self, layer: int, hidden: Tensor) -> None:
        """Read the state of the last token after a decoder layer, `[batch, D]`, without changing it.

        It is called in every forward pass, before `edit_logits` of the same pass.
        """

    def edit_logits(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the edited logits of the next token, without changing `logits` itself.

        They are edited before `generate` processes them (penalties, temperature, constraints).

        Args:
            logits: `[batch, vocabulary]` float32.
            tokens: `[batch]`, the tokens that were added to the answer last; None in the prefill.
        """
        return logits

    def edit_cache(self, cache: Any) -> None:
        """Edit the key-value cache in place after a forward pass, the prefill's included."""

    def logits_processors(self) -> Sequence[Any]:
        """Return logits processors of transformers, which run before the caller's, so that its constraints hold."""
        return ()

    def arguments(self) -> Mapping[str, Any]:
        """Return further arguments of `generate`, such as `custom_generate`, which the caller must not have set."""
        return {}

    def close(self) -> None:
        """Release what the request holds. Called at its end, also after an error."""

    def report(self) -> PluginReport:
        """Return a report on this call, when the answer is complete."""
        return PluginReport()


class LikeliestChanges:
    """The share of the steps of a request, over all prompts, in which an edit changed the likeliest token."""

    def __init__(self) -> None:
        self._choices = self._changed = 0

    def count(self, edited: Tensor, logits: Tensor) -> None:
        """Count one step, by its logits after and before the edit, `[batch, vocabulary]`."""
        self._choices += len(logits)
        self._changed += int((edited.argmax(dim=-1) != logits.argmax(dim=-1)).sum())

    @property
    def share(self) -> float:
        """The share of changed tokens; 0 before the first step."""
        return self._changed / max(1, self._choices)
