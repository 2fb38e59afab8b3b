"""Find the heads by which a model copies: a short run on random tokens that are repeated once.

Where a token occurs for the second time, an induction head attends to the token after its first occurrence, and so
predicts what follows (Olsson et al., arXiv 2209.11895). It finds that token by what a previous-token head, which
attends to the token before, has written there. Random tokens leave nothing else to attend to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.query_modules import parameter_place
from qkedit.errors import UnsupportedForm
from qkedit.plugins.core.modules import model_in
from qkedit.runtime.loaded_files import checkpoint_of

# A head copies if it gives this share of its attention, on average, to the token that copying needs.
THRESHOLD = 0.3
SEQUENCES, LENGTH, SEED = 4, 64, 0


def copying_heads(model: Any) -> dict[int, tuple[int, ...]]:
    """Return the query heads of a loaded model by which it copies, by layer: induction and previous-token heads.

    Args:
        model: as for `edit`, with vision or without.

    Raises:
        UnsupportedForm: the model does not return its attention weights, or has too few tokens.

    Example:
        >>> loaded = qkedit.load("demo")
        >>> qkedit.steer("demo", out="./edited", spare=qkedit.copying_heads(loaded))
    """
    found = {}
    for layer, (induction, previous) in copying_shares(model_in(model)).items():
        heads = (torch.maximum(induction, previous) >= THRESHOLD).nonzero().flatten().tolist()
        if heads:
            found[layer] = tuple(heads)
    return found


def copying_shares(model: Any) -> Mapping[int, tuple[Tensor, Tensor]]:
    """Return by layer the shares of each head's attention that copying needs, `[H]` twice.

    The first is the share at the token after the first occurrence, of tokens that occur for the second time; the
    second that at the previous token, of all tokens.
    """
    ids = _repeated_tokens(model)
    length = ids.shape[1] // 2
    rows = torch.arange(length, 2 * length)
    shares = {}
    with _attention_of(model) as weights, torch.inference_mode():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    for layer, of_layer in weights.items():
        attention = of_layer.float().mean(0).cpu()
        places = torch.arange(1, 2 * length)
        shares[layer] = attention[:, rows, rows - length + 1].mean(-1), attention[:, places, places - 1].mean(-1)
    return shares


@contextmanager
def _attention_of(model: Any) -> Iterator[dict[int, Tensor]]:
    """Collect the attention weights `[B, H, T, T]` of every layer in the block; the model is as before after it."""
    stack = attention_stack(checkpoint_of(model), allow_text_only=True)
    usual, training = model.config._attn_implementation, model.training
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if not isinstance(weights, Tensor) or weights.ndim != 4:
                raise UnsupportedForm(
                    f"layer {layer} does not return its attention weights",
                    where=type(model).__name__,
                    remedy="name the heads with --heads instead of --spare",
                )
            found[layer] = weights.detach()

        return hook

    with ExitStack() as undo:
        model.set_attn_implementation("eager")
        undo.callback(model.set_attn_implementation, usual)
        model.eval()
        undo.callback(model.train, training)
        for layer in stack.layers:
            place = parameter_place(model, layer.index, layer.query.tensor.name)
            if place is not None:
                module = model.get_submodule(place[0].rsplit(".", 2)[0])
                undo.callback(module.register_forward_hook(keep(layer.index)).remove)
        yield found


def _repeated_tokens(model: Any) -> Tensor:
    """Return random tokens of the middle half of the vocabulary, each sequence twice in a row, without special ones.

    Special tokens, such as the one that stands for an image, mostly have the first or the last numbers.
    """
    text = model.config.get_text_config()
    special = _special_tokens(model.config.to_dict())
    pool = torch.tensor([i for i in range(text.vocab_size // 4, 3 * text.vocab_size // 4) if i not in special])
    length = min(LENGTH, len(pool))
    if length < 8:
        raise UnsupportedForm(
            f"{len(pool)} tokens are too few to repeat", where=type(model).__name__, remedy="edit it without --spare"
        )
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.stack([pool[torch.randperm(len(pool), generator=generator)[:length]] for _ in range(SEQUENCES)])
    return torch.cat([drawn, drawn], -1).to(next(model.parameters()).device)


def _special_tokens(config: Mapping[Any, Any]) -> set[int]:
    """Return the tokens that a config names, at any depth."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _special_tokens(value)
        elif str(name).endswith(("token_id", "token_index")):
            found |= {token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)}
    return found
