"""The functions that vLLM finds by entry points, and the methods that are added to its workers."""

from __future__ import annotations

import os
from typing import Any

from qkedit.errors import QkeditError, UsageError
from qkedit.integrations.vllm.families import ARCHITECTURES, PREFIX
from qkedit.integrations.vllm.launch import SECTION, WORKER_EXTENSION, refused_settings


def register() -> None:
    """Register our classes with vLLM (the entry point `vllm.general_plugins`, which vLLM may call several times)."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    def checked(usual: Any) -> type:
        class Checked(usual or VerifyAndUpdateConfig):  # type: ignore[misc]
            """Change the configuration to what plug-ins need, and refuse settings that they do not support."""

            @staticmethod
            def verify_and_update_config(vllm_config: Any) -> None:
                if usual is not None:
                    usual.verify_and_update_config(vllm_config)
                prepare(vllm_config)

        return Checked

    for architecture in ARCHITECTURES.values():
        ModelRegistry.register_model(PREFIX + architecture, f"qkedit.integrations.vllm.models:{PREFIX}{architecture}")
        MODELS_CONFIG_MAP[PREFIX + architecture] = checked(MODELS_CONFIG_MAP.get(architecture))


def prepare(vllm_config: Any) -> None:
    """Change vLLM's configuration to what plug-ins need.

    Raises:
        UsageError: the configuration has settings that plug-ins do not support, or the plug-ins would never be bound.
    """
    named = os.environ.get("VLLM_PLUGINS", "").split(",")
    if SECTION not in named or SECTION not in (vllm_config.additional_config or {}):
        raise UsageError(
            "the plug-ins of this model class would not be active",
            where="vLLM",
            remedy="start it with qkedit serve --engine vllm",
        )
    scheduler, model, parallel = vllm_config.scheduler_config, vllm_config.model_config, vllm_config.parallel_config
    refused_settings(
        {
            "--pipeline-parallel-size": parallel.pipeline_parallel_size > 1,
            "--data-parallel-size": parallel.data_parallel_size > 1,
            "--decode-context-parallel-size": parallel.decode_context_parallel_size > 1,
            "--prefill-context-parallel-size": parallel.prefill_context_parallel_size > 1,
            "--speculative-config": vllm_config.speculative_config is not None,
            "--kv-transfer-config": vllm_config.kv_transfer_config is not None,
            "--ec-transfer-config": vllm_config.ec_transfer_config is not None,
            "--enable-dbo": parallel.use_ubatching,
            "--kv-cache-dtype": vllm_config.cache_config.cache_dtype not in ("auto", "bfloat16", "float16"),
        }
    )
    vllm_config.cache_config.enable_prefix_caching = False
    scheduler.enable_chunked_prefill = False
    # Depth is estimated from normalised images, so the processor normalises them before the worker has them.
    model.multimodal_config.mm_device_do_normalize = False
    scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, model.max_model_len)
    if not parallel.worker_extension_cls:
        parallel.worker_extension_cls = WORKER_EXTENSION


class WorkerExtension:
    """Methods that vLLM adds to every worker, for `collective_rpc`."""

    def qkedit_bind(self, document: Any = None) -> dict[str, Any]:
        """Bind the plug-ins of the configuration, or those given, to this worker's model; see `binding.bind`."""
        from qkedit.integrations.vllm.binding import bind

        return bind(self.model_runner, document)  # type: ignore[attr-defined]  # the worker's

    def qkedit_report(self) -> dict[str, Any]:
        """Return the report of this worker's plug-ins."""
        found: dict[str, Any] = self.model_runner.get_model().qkedit_plugins.report()  # type: ignore[attr-defined]
        return found


class ServerExtension:
    """Extend vLLM's HTTP server (the entry point `vllm.endpoint_plugins`), which waits until every worker is ready."""

    name = "qkedit"
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        """Add `GET /qkedit`, which returns the report of every worker."""

        async def report() -> Any:
            client = app.state.qkedit_engine
            return {"workers": [] if client is None else await client.collective_rpc("qkedit_report")}

        app.add_api_route("/qkedit", report, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Bind the plug-ins on every worker. Raises SystemExit if one cannot, so that the server does not start."""
        state.qkedit_engine = None
        if engine_client is None or SECTION not in (getattr(args, "additional_config", None) or {}):
            return
        try:
            check_ready(await engine_client.collective_rpc("qkedit_bind"))
        except QkeditError as error:  # vLLM would print a traceback
            raise SystemExit(f"error: {error}") from None
        state.qkedit_engine = engine_client


def check_ready(workers: list[dict[str, Any]]) -> None:
    """Raise QkeditError unless every worker has bound the plug-ins."""
    for rank, answer in enumerate(workers):
        if not answer["ready"]:
            raise QkeditError(
                f"worker {rank} runs without plug-ins: {answer['reason']}", where="vLLM", remedy="see docs/vllm.md"
            )
