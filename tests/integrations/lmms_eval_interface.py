"""The part of lmms-eval 0.7's model interface that qkedit uses, for tests without lmms-eval.

It has the names, arguments and values of the real interface.
"""

from __future__ import annotations

import abc
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Model(abc.ABC):
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...

    @property
    def rank(self) -> int:
        return self._rank

    def clean(self) -> None:
        self.task_dict = {}


def provide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import lmms_eval…` find this interface unless the real one is installed."""
    try:
        import lmms_eval  # noqa: F401
    except ImportError:
        modules = {
            "lmms_eval": {},
            "lmms_eval.api": {},
            "lmms_eval.api.instance": {
                "GenerationResult": GenerationResult,
                "Instance": Instance,
                "TokenCounts": TokenCounts,
            },
            "lmms_eval.api.model": {"lmms": Model},
            "lmms_eval.models": {},
            "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        }
        for name, content in modules.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, "qkedit.integrations.lmms_eval", raising=False)
