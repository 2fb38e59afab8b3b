"""Test the checks of a worker before it is ready, and the reply of `GET /qkedit`, with a simulated engine."""

from __future__ import annotations

import asyncio
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qkedit.errors import QkeditError
from qkedit.integrations.vllm import binding
from qkedit.integrations.vllm.binding import bind
from qkedit.integrations.vllm.plugin import ServerExtension

NOTHING = {"edited": 0, "split": 0, "failed": 0, "failure": None}


class Backend:
    forward_includes_kv_cache_update = False

    @staticmethod
    def get_name() -> str:
        return "FLASHY"


def attention(**settings: Any) -> Any:
    usual = {
        "attn_backend": Backend,
        "sliding_window": None,
        "has_sink": False,
        "impl": SimpleNamespace(logits_soft_cap=0),
    }
    return SimpleNamespace(**{**usual, **settings})


class Graphs(Enum):
    """vLLM's modes of CUDA graphs: for steps of answers and for those with prompts, or for both."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2
    FULL_DECODE_ONLY = (2, 0)
    FULL_AND_PIECEWISE = (2, 1)

    def mixed_mode(self) -> Graphs:
        return Graphs(self.value[1]) if isinstance(self.value, tuple) else self


def vllm_config(additional: Any = None, graphs: Graphs | None = Graphs.NONE) -> Any:
    return SimpleNamespace(
        additional_config=additional or {}, compilation_config=SimpleNamespace(cudagraph_mode=graphs)
    )


def runner(attention_of_last: Any = None, **extra: Any) -> Any:
    """Return a runner with a model of four layers."""
    layers = nn.ModuleList([nn.Module() for _ in range(4)])
    for layer in layers:
        layer.self_attn = SimpleNamespace(attn=attention())  # type: ignore[assignment]
    layers[-1].self_attn = SimpleNamespace(attn=attention_of_last or attention())  # type: ignore[assignment]
    decoder = SimpleNamespace(layers=layers, config=SimpleNamespace(num_hidden_layers=4))
    language = SimpleNamespace(model=decoder)
    model = SimpleNamespace(
        qkedit_plugins=None,
        get_language_model=lambda: language,
        config=SimpleNamespace(model_type="qwen2_vl"),
    )
    found = {
        "requests": {},
        "input_batch": None,
        "model_config": SimpleNamespace(model="/model", max_model_len=8192),
        "vllm_config": vllm_config(),
        **extra,
    }
    return SimpleNamespace(get_model=lambda: model, **found)


def document(name: str, **options: Any) -> dict[str, Any]:
    return {"schema": 1, "plugins": [{"name": name, "options": options}]}


def test_a_worker_is_ready_after_binding_its_plug_ins() -> None:
    worker = runner()
    assert bind(worker, document("scr")) == {"ready": True, "plugins": ["scr"], **NOTHING}
    assert bind(worker, document("scr", layers="9"))["ready"] is False


def test_plug_ins_may_come_from_the_configuration_of_the_server() -> None:
    config = vllm_config({"qkedit": document("scr")})
    assert bind(runner(vllm_config=config))["plugins"] == ["scr"]
    lost = bind(runner(vllm_config=vllm_config()))
    assert lost["ready"] is False


def test_a_depth_model_is_loaded_and_run_before_the_first_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = []

    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        def estimate(self, image: Any) -> torch.Tensor:
            tried.append((self.name, image.size))
            if self.name == "broken":
                raise QkeditError("cannot be loaded as a depth model", where="broken", remedy="give another")
            return torch.zeros(image.height, image.width)

    monkeypatch.setattr(binding, "DepthModel", Model)
    monkeypatch.setattr(binding, "_with_processor", lambda plugin, model: plugin)
    assert bind(runner(), document("dscr", depth="some/depth"))["ready"]
    broken = bind(runner(), document("dscr", depth="broken"))
    assert broken["ready"] is False
    assert "cannot be loaded as a depth model" in broken["reason"]
    assert tried == [("some/depth", (64, 64)), ("broken", (64, 64))]

    np.save(tmp_path / "depth.npy", np.zeros((4, 4)))
    assert bind(runner(), document("dscr", depth=str(tmp_path / "depth.npy")))["ready"]
    assert bind(runner(), document("dscr", depth=str(tmp_path / "missing.npy")))["ready"] is False
    assert len(tried) == 2, "a file is not a model"


@pytest.mark.parametrize(
    ("unusual", "reason"),
    [
        ({"sliding_window": 4096}, "layer 3 has a sliding window"),
        ({"has_sink": True}, "layer 3 has sinks"),
        ({"impl": SimpleNamespace(logits_soft_cap=50.0)}, "layer 3 has a cap on its logits"),
        ({"attn_backend": type("Own", (Backend,), {"forward_includes_kv_cache_update": True})}, "FLASHY writes"),
    ],
)
def test_unsupported_attention_is_refused(unusual: dict[str, Any], reason: str) -> None:
    answer = bind(runner(attention(**unusual)), document("scr"))
    assert answer["ready"] is False
    assert reason in answer["reason"]


@pytest.mark.parametrize("graphs", [*Graphs, None])
def test_a_graph_that_prompts_replay_is_refused(graphs: Graphs | None) -> None:
    answer = bind(runner(vllm_config=vllm_config(graphs=graphs)), document("scr"))
    assert answer["ready"] is (graphs is not Graphs.FULL)
    assert ("a graph that was recorded without plug-ins" in answer.get("reason", "")) is (graphs is Graphs.FULL)


def test_a_window_as_long_as_every_prompt_is_accepted() -> None:
    assert bind(runner(attention(sliding_window=8192)), document("scr"))["ready"]


def test_another_runner_or_class_is_refused() -> None:
    other = runner()
    del other.requests
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in bind(other, document("scr"))["reason"]
    plain = SimpleNamespace(get_model=lambda: SimpleNamespace())
    assert bind(plain, document("scr")) == {"ready": False, "reason": "SimpleNamespace is not one of qkedit's classes"}


class Engine:
    """An engine that answers calls to its two workers."""

    def __init__(self, **answers: list[dict[str, Any]]) -> None:
        self.answers = answers

    async def collective_rpc(self, name: str) -> list[dict[str, Any]]:
        return self.answers[name]


def get_qkedit(engine: Any, additional: Any) -> Any:
    """Start the extension with an engine, and return the reply of its route."""
    routes: dict[str, tuple[Any, list[str]]] = {}
    app = SimpleNamespace(
        state=SimpleNamespace(),
        add_api_route=lambda path, endpoint, methods: routes.update({path: (endpoint, methods)}),
    )
    extension = ServerExtension()
    extension.attach_router(app)
    report, methods = routes["/qkedit"]
    assert methods == ["GET"]

    async def started() -> Any:
        await extension.init_state(engine, app.state, SimpleNamespace(additional_config=additional))
        return await report()

    return asyncio.run(started())


def test_get_qkedit_has_the_report_of_every_worker() -> None:
    reports = [{"plugins": ["dscr"], "edited": number} for number in (3, 4)]
    engine = Engine(qkedit_bind=[{"ready": True}] * 2, qkedit_report=reports)
    assert get_qkedit(engine, {"qkedit": document("dscr")}) == {"workers": reports}
    assert get_qkedit(engine, None) == {"workers": []}, "a server without plug-ins"
    assert get_qkedit(None, {"qkedit": document("dscr")}) == {"workers": []}


def test_a_server_does_not_start_if_a_worker_is_not_ready() -> None:
    engine = Engine(qkedit_bind=[{"ready": True}, {"ready": False, "reason": "no depth"}])
    with pytest.raises(SystemExit, match="error: vLLM: worker 1 runs without plug-ins: no depth"):
        get_qkedit(engine, {"qkedit": document("dscr")})
