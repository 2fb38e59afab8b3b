"""A call of `generate` for plug-ins that act on decoding, and what they may add to it."""

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
            tokens: `[batch]`, the tokens that the answer went on with; None for the first ones of the answer.
        """
        ...

    def close(self) -> None:
        """End the branch. Does nothing if it has ended."""
        ...


class AttentionEdit:
    """An edit that looks at the attention of a model while it answers, and hides columns from it.

    Attributes:
        watched_layers: in which decoder layers `watch_attention` is called.
        masked_layers: in which decoder layers the columns that `hidden_columns` returns are not attended to.
    """

    watched_layers: frozenset[int] = frozenset()
    masked_layers: frozenset[int] = frozenset()

    def watch_attention(self, layer: int, shares: Tensor) -> None:
        """Look at the attention of the last column in a layer, with every edit of scores; change nothing.

        It is called in every forward pass, before `edit_logits` of the same pass; for a prompt that runs in parts,
        with each part, so that the last call before `edit_logits` is the one to keep.

        Args:
            layer: the decoder layer.
            shares: `[batch, heads, columns]` float32, each row of which adds up to 1. The columns are the last ones so
                far, since a sliding layer forgets those before its window; padding has none.
        """

    def hidden_columns(self, layer: int, tokens: int, columns: int) -> Tensor:
        """Return the columns that no token of this forward pass attends to, except to itself.

        Args:
            layer: the decoder layer; `watch_attention` of the layers before it has been called in the same pass.
            tokens: the number of tokens per row in this forward pass: 1 for a token of the answer.
            columns: the number of columns that the layer holds, the last ones of the text so far.

        Returns:
            `[batch, columns]` bool.
        """
        raise NotImplementedError


class StartBranch(Protocol):
    """Run the model on other inputs beside the answer."""

    def __call__(self, inputs: Mapping[str, Any], attention: AttentionEdit | None = None) -> Branch:
        """Return a branch. Prefill plug-ins act there too, decoding plug-ins do not.

        Args:
            inputs: the model inputs (`input_ids`, `attention_mask`, `pixel_values`, …; no settings of `generate`).
            attention: what reads and edits the attention in the branch.
        """
        ...


@dataclass(frozen=True)
class Generation:
    """One call of `generate` before it runs.

    Attributes:
        modules: the model's modules.
        inputs: the call's arguments by name: `input_ids` `[batch, length]`, `pixel_values`, `max_new_tokens`, …
        start_branch: run the model on other model inputs beside the answer; see `StartBranch`.
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
        edited_states: after which decoder layers `edit_state` is called.
        observed_layers: after which decoder layers `observe_layer` is called.
        scored_layers: in which decoder layers `edit_scores` is called; only layers that attend to every column.
    """

    edited_states: frozenset[int] = frozenset()
    observed_layers: frozenset[int] = frozenset()
    scored_layers: frozenset[int] = frozenset()

    def edit_scores(self, layer: int, scores: Tensor) -> Tensor:
        """Return the attention scores of the last token of the prompt, or of a token of the answer, edited.

        Args:
            layer: the decoder layer.
            scores: `[batch, heads, columns]` float32 before mask and softmax. The first columns are the prompt's,
                padding included.
        """
        return scores

    def edit_state(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the state after a decoder layer, edited, of the prompt's last token or of a token of the answer.

        The layers behind, and with them the cache, go on from the edited state. It is not called in a preview.

        Args:
            layer: the decoder layer.
            hidden: `[batch, D]`; it must stay as it is.
        """
        return hidden

    def observe_layer(self, layer: int, hidden: Tensor) -> None:
        """Look at the state of the last token after a decoder layer, `[batch, D]`; change nothing.

        It is called in every forward pass, before `edit_logits` of the same pass.
        """

    def edit_logits(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the model's logits of the next token, edited; `logits` itself must stay as it is.

        They are edited before everything that `generate` does to them: penalties, temperature, constraints.

        Args:
            logits: `[batch, vocabulary]` float32.
            tokens: `[batch]`, the tokens that the answer went on with; None in the prefill.
        """
        return logits

    def edit_cache(self, cache: Any) -> None:
        """Edit the key-value cache in place after a forward pass, the prefill's included."""

    def logits_processors(self) -> Sequence[Any]:
        """Return logits processors of transformers. They run before those of the caller, so that the
        caller's constraints hold."""
        return ()

    def arguments(self) -> Mapping[str, Any]:
        """Return further arguments of `generate`, such as `custom_generate`, which the caller must not have set."""
        return {}

    def close(self) -> None:
        """Release what the request holds. Called at its end, also after an error."""

    def report(self) -> PluginReport:
        """Return a report on this call, when the answer is complete."""
        return PluginReport()
