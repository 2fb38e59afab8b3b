"""Record the attention of chosen prompt columns while the model runs with its usual attention.

The layer itself runs its configured attention (sdpa, flash attention, eager) on the same queries and keys:
transformers looks up a function by name, and ours passes the call on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from qkedit.plugins.core.prefill import StopForward
from qkedit.plugins.core.recorded_attention import AttentionRecorder, attention_scores
from qkedit.plugins.transformers.attention_functions import registered, usual_attention

_recorders = threading.local()


@contextmanager
def recording(text_config: Any, recorder: AttentionRecorder) -> Iterator[None]:
    """Record the attention of the decoder with `text_config` in this thread into `recorder`.

    The prompts must run whole and without a cache, so that query and key columns are prompt columns.
    """
    usual = text_config._attn_implementation
    # Passed as a mapping, the name applies to the decoder's own config and not to those of its parts.
    text_config._attn_implementation = {"": registered(usual, "recorded", _attend)}
    _recorders.active = recorder
    try:
        yield
    finally:
        _recorders.active = None
        text_config._attn_implementation = {"": usual}


def _attend(usual: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    recorder: AttentionRecorder | None = getattr(_recorders, "active", None)
    layer: Any = module.layer_idx
    if recorder is not None and layer in recorder.layers:
        recorder.scores[layer] = attention_scores(recorder.readings, query, key, mask, kwargs)
        if layer == recorder.leave_after:
            raise StopForward
    return usual_attention(usual, module, query, key, value, mask, **kwargs)
