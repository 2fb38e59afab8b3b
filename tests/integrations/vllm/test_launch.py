"""Test the command that starts vLLM with plug-ins, and the refusal of unsupported settings, without vLLM."""

from __future__ import annotations

import json
import os
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qkedit.demo import SMALL_DEMO
from qkedit.errors import QkeditError, UnsupportedForm, UsageError
from qkedit.integrations.vllm import launch
from qkedit.integrations.vllm.families import our_architecture
from qkedit.integrations.vllm.launch import is_switched_off, server_command, server_environment
from qkedit.integrations.vllm.plugin import ServerExtension, WorkerExtension, check_ready, prepare, register
from qkedit.plugins.settings import PluginSettings, parse_document
from tests.cli.command import qkedit
from tests.paths import ROOT

QWEN = {"model_type": "qwen2_vl"}
DSCR = PluginSettings("dscr", {"blend": 0.5})


def command(*flags: str, plugins: tuple[PluginSettings, ...] = (DSCR,), config: Any = QWEN) -> list[str]:
    where: dict[str, Any] = {"host": "127.0.0.1", "port": 8000, "served_name": "edited"}
    return server_command("/model", config, plugins, **where, flags=flags)


def value_of(flag: str, arguments: list[str]) -> str:
    return arguments[arguments.index(flag) + 1]


def test_the_command_line_has_the_settings_that_plug_ins_need() -> None:
    arguments = command("--max-model-len", "4096")
    assert json.loads(value_of("--hf-overrides", arguments)) == {
        "architectures": ["QkeditQwen2VLForConditionalGeneration"]
    }
    document = json.loads(value_of("--additional-config", arguments))["qkedit"]
    assert parse_document(document, "here") == (DSCR,)
    assert {"--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--no-mm-device-do-normalize"} <= {*arguments}
    assert arguments[-2:] == ["--max-model-len", "4096"]
    module, _, name = value_of("--worker-extension-cls", arguments).rpartition(".")
    assert (module, name) == (WorkerExtension.__module__, WorkerExtension.__name__)


def test_without_plug_ins_vllm_runs_its_own_class() -> None:
    arguments = command("--enable-prefix-caching", plugins=(), config={"model_type": "gemma3"})
    assert "--hf-overrides" not in arguments
    assert server_environment({"A": "b"}, ()) == {"A": "b"}


@pytest.mark.parametrize(
    "flags",
    [
        ("--pipeline-parallel-size", "2"),
        ("-pp", "2"),
        ("-dp", "2"),
        ("--decode-context-parallel-size", "2"),
        ("--pipeline_parallel_size=2",),
        ("--speculative-config", "{}"),
        ("--enable-prefix-caching",),
        ("--enable-chunked-prefill",),
        ("--hf-overrides={}",),
        ("--kv-cache-dtype", "fp8"),
        ("--mm-device-do-normalize",),
        ("-sc", "{}"),
        ("--spec-method", "ngram"),
        ("--speculative-config.method", "ngram"),
        ("--pipeline-parallel", "2"),
    ],
)
def test_flags_that_plug_ins_do_not_support_are_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="does not go with plug-ins"):
        command(*flags)


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        ("port: 1\nenable-dbo: true\n", "enable-dbo"),
        ("pipeline_parallel_size: 2\n", "pipeline-parallel-size"),
        ("pipeline-parallel: 2\n", "pipeline-parallel-size"),
        ("speculative-config:\n  method: ngram\n", "speculative-config"),
        ("speculative-config.method: ngram\n", "speculative-config"),
    ],
)
def test_settings_in_a_file_that_plug_ins_do_not_support_are_refused(
    content: str, refused: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=f"{refused} in {file}: does not go with plug-ins"):
        command("--config", str(file))
    command("--config", str(file), plugins=())  # vLLM's own class reads it by itself


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("a: [", "cannot be read"),
        (b"\xff\xfe\xff", "cannot be read"),
        ("- port", "no settings"),
    ],
)
def test_a_file_of_settings_that_cannot_be_read_is_refused(
    content: str | bytes | None, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=reason):
        command("--config", str(file))


def test_settings_in_a_file_that_plug_ins_support_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("max-model-len: 4096\nenable-dbo: false\nenable-prefix-caching: false\n2: 3\n")
    assert command("--config", str(file))[-2:] == ["--config", str(file)]


def test_flags_similar_to_refused_ones_are_passed_to_vllm() -> None:
    flags = ("--tensor-parallel-size", "2", "--no-enable-prefix-caching", "--kv-cache-memory-bytes=1", "-O.mode=0")
    assert command(*flags)[-len(flags) :] == [*flags]


def test_plug_ins_and_families_without_support_are_refused() -> None:
    with pytest.raises(UsageError, match="vcd does not run on vLLM"):
        command(plugins=(PluginSettings("vcd", {}),))
    unrotated = PluginSettings("dscr", {"space": "pre-rotation"})
    with pytest.raises(UsageError, match="keys that vaf has scaled are not mixed before their rotation"):
        command(plugins=(PluginSettings("vaf", {}), unrotated))
    assert command(plugins=(PluginSettings("scr", {}), unrotated))
    assert command(plugins=(PluginSettings("vaf", {}), DSCR))
    with pytest.raises(UnsupportedForm, match="model type gemma3"):
        our_architecture({"model_type": "gemma3"}, "gemma")


def test_the_environment_enables_the_extension_of_the_server() -> None:
    assert server_environment({}, [DSCR])["VLLM_PLUGINS"] == "qkedit"
    assert server_environment({"VLLM_PLUGINS": "other,qkedit"}, [DSCR])["VLLM_PLUGINS"] == "other,qkedit"


def test_entry_points_name_the_functions_that_vllm_calls() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    found = {
        group: EntryPoint("qkedit", groups[group]["qkedit"], group).load()
        for group in ("vllm.general_plugins", "vllm.endpoint_plugins")
    }
    assert found == {"vllm.general_plugins": register, "vllm.endpoint_plugins": ServerExtension}


def parallel(**changes: Any) -> Any:
    sizes = {f"{name}_parallel_size": 1 for name in ("pipeline", "data", "decode_context", "prefill_context")}
    return SimpleNamespace(**{**sizes, "use_ubatching": False, "worker_extension_cls": "", **changes})


def config(**changes: Any) -> Any:
    parts: dict[str, Any] = {
        "scheduler_config": SimpleNamespace(enable_chunked_prefill=True, max_num_batched_tokens=2048),
        "model_config": SimpleNamespace(
            max_model_len=4096, multimodal_config=SimpleNamespace(mm_device_do_normalize=True)
        ),
        "parallel_config": parallel(),
        "speculative_config": None,
        "kv_transfer_config": None,
        "ec_transfer_config": None,
        "cache_config": SimpleNamespace(cache_dtype="auto", enable_prefix_caching=True),
        "additional_config": {"qkedit": {}},
    }
    return SimpleNamespace(**{**parts, **changes})


def test_the_configuration_gets_the_settings_that_plug_ins_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "qkedit")
    prepared = config()
    prepare(prepared)
    assert (prepared.scheduler_config.enable_chunked_prefill, prepared.cache_config.enable_prefix_caching) == (
        False,
        False,
    )
    assert prepared.scheduler_config.max_num_batched_tokens == 4096
    assert not prepared.model_config.multimodal_config.mm_device_do_normalize
    assert prepared.parallel_config.worker_extension_cls == launch.WORKER_EXTENSION


@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        ("--speculative-config", {"speculative_config": object()}),
        ("--kv-transfer-config", {"kv_transfer_config": object()}),
        ("--ec-transfer-config", {"ec_transfer_config": object()}),
        ("--kv-cache-dtype", {"cache_config": SimpleNamespace(cache_dtype="fp8")}),
        ("--pipeline-parallel-size", {"parallel_config": parallel(pipeline_parallel_size=2)}),
        ("--data-parallel-size", {"parallel_config": parallel(data_parallel_size=2)}),
        ("--decode-context-parallel-size", {"parallel_config": parallel(decode_context_parallel_size=2)}),
        ("--prefill-context-parallel-size", {"parallel_config": parallel(prefill_context_parallel_size=2)}),
        ("--enable-dbo", {"parallel_config": parallel(use_ubatching=True)}),
    ],
)
def test_a_configuration_that_plug_ins_do_not_support_is_refused(
    flag: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "qkedit")
    with pytest.raises(UsageError, match=flag):
        prepare(config(**changes))


def test_a_model_class_with_plug_ins_does_not_run_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "qkedit")
    with pytest.raises(UsageError, match="would not be active"):
        prepare(config(additional_config={}))
    monkeypatch.delenv("VLLM_PLUGINS")
    with pytest.raises(UsageError, match="would not be active"):
        prepare(config())


def test_a_server_is_ready_only_if_every_worker_is() -> None:
    check_ready([{"ready": True}, {"ready": True}])
    with pytest.raises(QkeditError, match="worker 1 runs without plug-ins: why"):
        check_ready([{"ready": True}, {"ready": False, "reason": "why"}])


def test_a_request_switches_plug_ins_off() -> None:
    assert [is_switched_off(extra) for extra in (None, {}, {"qkedit": "on"}, {"qkedit": "off"})] == [
        False,
        False,
        False,
        True,
    ]


def test_serve_starts_vllm_or_refuses_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def execve(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        started.append((arguments, environment))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(launch, "find_spec", lambda name: object())
    begin = ("serve", SMALL_DEMO, "--engine", "vllm", "--plugin", "scr")
    result = qkedit(*begin, "--port", "9000", "--api-key", "secret", "--", "--max-model-len", "512")
    assert result.code == 0, result.stderr
    ((arguments, environment),) = started
    assert value_of("--served-model-name", arguments) == SMALL_DEMO
    assert (value_of("--port", arguments), arguments[-2:]) == ("9000", ["--max-model-len", "512"])
    assert "QkeditLlavaForConditionalGeneration" in value_of("--hf-overrides", arguments)
    assert environment["VLLM_API_KEY"] == "secret"
    assert "secret" not in arguments

    assert "has no effect with --engine vllm" in qkedit(*begin, "--max-body", "3").stderr
    assert qkedit(*begin, "--", "--enable-dbo").code == 2
    assert qkedit("serve", SMALL_DEMO, "--", "--max-model-len", "512").code == 2
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    assert "the package vllm is not installed" in qkedit(*begin).sentence()
    assert len(started) == 1
