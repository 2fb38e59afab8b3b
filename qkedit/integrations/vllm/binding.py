"""Bind plug-ins to the model of one vLLM worker, and find the whole prompts of each step.

This is the only module that reads vLLM's model runner (`requests`, `input_batch`) and its forward context, as they are
in vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor

from qkedit.errors import QkeditError, first_sentence
from qkedit.integrations.vllm.launch import SECTION, check_plugins, is_switched_off
from qkedit.integrations.vllm.prompts import PromptBatch, WholePrompt
from qkedit.integrations.vllm.step import Run, StepEditor
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.dscr.depth import DepthModel, is_depth_model
from qkedit.plugins.settings import make_plugins, parse_document


class WorkerPlugins:
    """The plug-ins that are bound to the model of one worker.

    Args:
        runner: vLLM's model runner.
        document: the plug-ins, in the form of a settings file.

    Raises:
        QkeditError: the runner does not list the requests of a step, or the plug-ins do not fit the model.
    """

    def __init__(self, runner: Any, document: Any) -> None:
        if not hasattr(runner, "requests") or not hasattr(runner, "input_batch"):
            raise QkeditError(
                f"{type(runner).__name__} does not list the requests of a step",
                where="vLLM",
                remedy="set VLLM_USE_V2_MODEL_RUNNER=0",
            )
        self._runner = runner
        model = runner.get_model()
        language = model.get_language_model()
        decoder = getattr(language, "model", language)  # Idefics3 returns its decoder, others the decoder and its head
        parts = VLMModules(model, model, decoder, decoder.layers, tuple(range(len(decoder.layers))))
        for index, layer in enumerate(decoder.layers):
            _check_attention(index, layer.self_attn.attn, runner.model_config.max_model_len)
        _check_graphs(runner.vllm_config.compilation_config.cudagraph_mode)
        settings = parse_document(document, where="--additional-config")
        check_plugins(settings)
        made = [_with_processor(plugin, runner.model_config.model) for plugin in make_plugins(settings)]
        for plugin in made:
            _try_depth_model(plugin)
        self.editor = StepEditor(
            parts, {plugin.name: plugin.bind(parts) for plugin in made}, _update_cache, _mean_over_ranks
        )

    def run(self, run: Run, embeddings: Tensor | None) -> Any:
        """Return the model's output for a step.

        Args:
            run: the model's unedited forward, from the step's embeddings.
            embeddings: `[tokens, D]`; None for a step that vLLM runs from token ids.
        """
        try:
            prompts = None if embeddings is None else self._whole_prompts()
        except Exception as error:
            self.editor.note_failure(error, 1)
            prompts = None
        if prompts is None or embeddings is None:
            return run(embeddings)  # type: ignore[arg-type]  # a step of token ids
        from vllm.forward_context import get_forward_context

        get_forward_context().skip_compiled = True  # compiled layers do not call hooks
        return self.editor.run(prompts, run, embeddings)

    def report(self) -> dict[str, Any]:
        """Return the active plug-ins, the number of prompts they edited, and the last failure."""
        return {
            "plugins": sorted(self.editor.plugins),
            "edited": self.editor.counts["edited"],
            "split": self.editor.counts["split"],
            "failed": self.editor.counts["failed"],
            "failure": self.editor.failure,
        }

    def _whole_prompts(self) -> PromptBatch | None:
        """Return the prompts with images whose tokens are all in this step; None if there are none."""
        from vllm.forward_context import get_forward_context

        metadata = get_forward_context().attn_metadata
        if not isinstance(metadata, Mapping) or not metadata:
            return None  # vLLM measures its memory
        metadata = next(iter(metadata.values()))
        starts, lengths = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
        found = []
        for row, name in enumerate(self._runner.input_batch.req_ids[: len(starts) - 1]):
            request = self._runner.requests[name]
            tokens = request.prompt_token_ids
            if not request.mm_features or tokens is None or _is_switched_off(request):
                continue
            here, until = starts[row + 1] - starts[row], lengths[row]
            if until - here >= len(tokens):
                continue  # the prompt is cached, and the answer is being generated
            data = [feature.data for feature in request.mm_features]
            if here != until or here != len(tokens) or None in data:
                self.editor.counts["split"] += until >= len(tokens)
                continue
            images = tuple({name: item[name].data for name in item} for item in data)
            found.append(WholePrompt(name, starts[row], tuple(tokens), images))
        return PromptBatch(found) if found else None


def bind(runner: Any, document: Any = None) -> dict[str, Any]:
    """Bind plug-ins to the model of a worker.

    Args:
        runner: vLLM's model runner.
        document: the plug-ins, in the form of a settings file; None for those in the server's configuration.

    Returns:
        `ready`; with the worker's report if it is True, with the `reason` if it is False.
    """
    model = runner.get_model()
    if not hasattr(model, "qkedit_plugins"):
        return {"ready": False, "reason": f"{type(model).__name__} is not one of qkedit's classes"}
    try:
        given = runner.vllm_config.additional_config.get(SECTION) if document is None else document
        model.qkedit_plugins = WorkerPlugins(runner, given)
    except QkeditError as error:
        return {"ready": False, "reason": str(error)}
    except Exception as error:  # such as an attribute that another version of vLLM does not have
        return {"ready": False, "reason": f"{type(error).__name__}: {first_sentence(error)}"}
    return {"ready": True, **model.qkedit_plugins.report()}


def _check_attention(index: int, attention: Any, longest: int) -> None:
    """Raise QkeditError for attention that `attention_rows` does not compute, or whose backend writes the cache."""
    if attention.attn_backend.forward_includes_kv_cache_update:
        raise QkeditError(
            f"the attention backend {attention.attn_backend.get_name()} writes its cache during attention",
            where="vLLM",
            remedy="choose another with --attention-backend",
        )
    has = {
        "a sliding window": attention.sliding_window is not None and attention.sliding_window < longest,
        "sinks": attention.has_sink,
        "a cap on its logits": bool(attention.impl.logits_soft_cap),
    }
    for name, is_there in has.items():
        if is_there:
            raise QkeditError(
                f"the attention of layer {index} has {name}",
                where="vLLM",
                remedy="use --engine transformers, where plug-ins support it",
            )


def _check_graphs(mode: Any) -> None:
    """Raise QkeditError if steps with prompts replay a CUDA graph of the whole model, which calls no code of ours."""
    if mode is not None and mode.mixed_mode().name == "FULL":
        raise QkeditError(
            f"with cudagraph_mode {mode.name}, prompts replay a graph that was recorded without plug-ins",
            where="vLLM",
            remedy='add --compilation-config \'{"cudagraph_mode": "PIECEWISE"}\', or --enforce-eager',
        )


def _is_switched_off(request: Any) -> bool:
    return request.sampling_params is not None and is_switched_off(request.sampling_params.extra_args)


def _with_processor(plugin: Any, model: str) -> Any:
    if getattr(plugin, "processor", plugin) is not None:
        return plugin
    from transformers import AutoImageProcessor

    return replace(plugin, processor=AutoImageProcessor.from_pretrained(model))


def _try_depth_model(plugin: Any) -> None:
    """Run a plug-in's depth model once, to raise QkeditError before the first request if it does not work."""
    depth = getattr(plugin, "depth", None)
    if is_depth_model(depth):
        DepthModel(str(depth)).estimate(Image.new("RGB", (64, 64)))


def _update_cache(attention: Any, keys: Tensor, values: Tensor) -> None:
    from vllm.model_executor.layers.attention.attention import get_attention_context

    _, module, cache, slots = get_attention_context(attention.layer_name)
    if slots is not None:
        module.impl.do_kv_cache_update(module, keys, values, cache, slots)


def _mean_over_ranks(scores: Tensor) -> Tensor:
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

    ranks = get_tensor_model_parallel_world_size()
    return scores if ranks == 1 else tensor_model_parallel_all_reduce(scores) / ranks


def forward_with_plugins(model: Any, usual: Any, input_ids: Any, positions: Any, embeddings: Any, rest: Any) -> Any:
    """Return the output of one step of a model of ours, with its plug-ins if they are bound.

    They are not bound yet while vLLM measures memory and captures graphs; a server answers only after they are.

    Args:
        model: the model, of one of our classes.
        usual: the forward of vLLM's class.
        input_ids: `[tokens]`; None if there are embeddings.
        positions: as vLLM passes them.
        embeddings: `[tokens, D]`; None if there are token ids.
        rest: the other arguments of the forward, by name.
    """
    run = partial(_run, usual, input_ids, positions, rest)
    return run(embeddings) if model.qkedit_plugins is None else model.qkedit_plugins.run(run, embeddings)


def _run(usual: Any, input_ids: Any, positions: Any, rest: Mapping[str, Any], embeddings: Any) -> Any:
    return usual(input_ids, positions, inputs_embeds=embeddings, **rest)
