"""Ask a model that runs in this process, on transformers, with plug-ins attached."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import QkeditError, memory_that_ran_out
from qkedit.evaluation.files.records import LENGTH, STOP
from qkedit.evaluation.runs.backend import EvalRequest, Reply, versions
from qkedit.images import read_image
from qkedit.plugins.core.pictures import check_files
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.runtime.fingerprint import fingerprint, plugin_files_sha256
from qkedit.runtime.load_options import Placement, recorded_loading
from qkedit.steering.sources.edit_source import edits_identity, open_edits
from qkedit.steering.sources.stream import refuse_other_base

if TYPE_CHECKING:
    from qkedit.plugins.core.report import RequestReport
    from qkedit.plugins.transformers.attach import Attachment
    from qkedit.runtime.generation import LoadedModel


@dataclass
class Shared:
    """The shared state of several runs of one model: its weights in memory, and their SHA-256."""

    loaded: LoadedModel | None = None
    fingerprint: dict[str, str] | None = None


@dataclass(frozen=True)
class LocalModel:
    """A model of transformers.

    Attributes:
        name: a directory, a hub id, an alias or `demo`.
        revision: the revision of a model on the hub.
        plugins: the plug-ins attached for the whole run.
        device: the device, by PyTorch's name.
        dtype: the dtype of its weights; `auto` for the stored one.
        batch_size: the number of prompts per batch.
        trust_remote_code: whether the checkpoint's own Python code may run; None where users cannot allow it.
        chat_template: a file with a Jinja template, or `none`, instead of the model's own.
        placement: the placement on devices, the attention implementation and the quantisation.
        edits: directories of edits of this model, which are applied together to the loaded weights.
        shared: the state of runs of one model that differ only in edits and plug-ins; None for a single run.
    """

    name: str
    revision: str | None = None
    plugins: tuple[PluginSettings, ...] = ()
    device: str = "cpu"
    dtype: str = "auto"
    batch_size: int = 8
    trust_remote_code: bool | None = None
    chat_template: str | None = None
    placement: Placement = field(default_factory=Placement)
    edits: tuple[str, ...] = ()
    shared: Shared | None = field(default=None, compare=False, repr=False)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Backend`."""
        return {"batch_size": self.batch_size, **({"edited_with": list(self.edits)} if self.edits else {})}

    def identity(self) -> dict[str, Any]:
        """See `Backend`."""
        from qkedit.runtime.generation import directory_of

        trusted = bool(self.trust_remote_code)
        directory = directory_of(self.name, self.revision, trust_remote_code=trusted)
        return {
            **self._fingerprint(directory, with_code=trusted),
            "plugins": [plugin.as_dict() for plugin in self.plugins],
            **recorded_loading(self.device, self.dtype, self.placement),
            "libraries": versions("torch", "transformers"),
            **self._chosen_template(),
            **self._checked_edits(directory),
        }

    def identity_for(self, images: Iterable[Path]) -> dict[str, Any]:
        """See `DependsOnImages`: the content of the files that plug-ins read, such as second images."""
        return plugin_files_sha256(self.plugins, images)

    def _checked_edits(self, directory: Path) -> dict[str, Any]:
        """Return the identity of the edits, after comparing the stored weights with their base."""
        if not self.edits:
            return {}
        sources = open_edits(self.edits)
        refuse_other_base(sources, open_checkpoint(LocalFiles(directory, follows_links=True)))
        return {"edits": edits_identity(sources)}

    def _fingerprint(self, directory: Path, *, with_code: bool) -> dict[str, str]:
        shared = self.shared or Shared()
        if shared.fingerprint is None:
            shared.fingerprint = fingerprint(directory, with_code=with_code)
        return shared.fingerprint

    def _load(self) -> LoadedModel:
        from qkedit.runtime.generation import load

        shared = self.shared or Shared()
        if shared.loaded is None:
            shared.loaded = load(
                self.name,
                revision=self.revision,
                device=self.device,
                dtype=self.dtype,
                trust_remote_code=self.trust_remote_code,
                chat_template=self.chat_template,
                device_map=self.placement.device_map,
                attn_implementation=self.placement.attn_implementation,
                quantization=self.placement.quantization,
            )
        return shared.loaded

    def _chosen_template(self) -> dict[str, str]:
        """The chat template used instead of the model's own, which `settings_sha256` covers."""
        from qkedit.runtime.loading import read_template

        text = read_template(self.chat_template)
        return (
            {} if text is None else {"chosen_template": text if text == "none" else sha256(text.encode()).hexdigest()}
        )

    @contextmanager
    def session(self) -> Iterator[_LocalSession]:
        """See `Backend`."""
        from qkedit.plugins.transformers.attach import attach
        from qkedit.runtime.editing import edit

        plugins = make_plugins(self.plugins)
        loaded = self._load()
        with (
            edit(loaded.model, self.edits) if self.edits else nullcontext(),
            attach(loaded.model, *plugins) if plugins else nullcontext() as attached,
        ):
            yield _LocalSession(loaded, attached, self.batch_size, plugins)


@dataclass(frozen=True)
class _LocalSession:
    loaded: LoadedModel
    attached: Attachment | None
    batch_size: int
    plugins: Sequence[Any] = ()
    _warned: Counter[str] = field(default_factory=Counter)
    _first: dict[str, str] = field(default_factory=dict)

    @property
    def observed(self) -> Mapping[str, Any]:
        model = self.loaded.model
        generation = model.generation_config.to_diff_dict()
        generation.pop("transformers_version", None)
        return {
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config.get_text_config()._attn_implementation,
            "generation_config": generation,
            "chat_template": self.loaded.template_record,
        }

    @property
    def warnings(self) -> Sequence[str]:
        return [
            f"{name} warned at {count} batches, at the first: {self._first[name]}"
            for name, count in self._warned.items()
        ]

    def answers(self, requests: Sequence[EvalRequest]) -> Iterator[tuple[EvalRequest, Reply]]:
        from qkedit.runtime.processor_errors import refuse_placeholders

        for request in requests:  # all of them first, since a run may take hours to reach the last one
            where = f"{request.task}, question {request.id}"
            refuse_placeholders(self.loaded.processor, request.prompt, where)
        check_files(self.plugins, dict.fromkeys(request.image for request in requests if request.image is not None))
        for batch in batches(requests, self.batch_size):
            yield from zip(batch, self._answered(batch), strict=True)

    def _answered(self, batch: Sequence[EvalRequest]) -> list[Reply]:
        from qkedit.runtime.generation import Prompt, prompt_text, respond_batch

        started = time.perf_counter()
        images = {request.image: read_image(request.image) for request in batch if request.image is not None}
        prompts = [
            Prompt(
                prompt_text(self.loaded, request.prompt, int(request.image is not None)),
                () if request.image is None else (images[request.image],),
                request.prompt,
            )
            for request in batch
        ]
        before = self._last_report()
        try:
            answers = respond_batch(self.loaded, prompts, max_new_tokens=batch[0].max_new_tokens)
        except Exception as error:
            if not (whose := memory_that_ran_out(error)):
                raise
            raise QkeditError(
                f"{whose} does not suffice for {len(batch)} prompts at once",
                where=batch[0].task,
                remedy="lower --batch-size; the finished answers are kept",
            ) from error
        share = (time.perf_counter() - started) / len(batch)
        if (report := self._last_report()) is not None and report is not before:
            self._note_warnings(report)
        return [Reply(answer.text, LENGTH if answer.is_cut else STOP, share) for answer in answers]

    def _last_report(self) -> RequestReport | None:
        reports = self.attached.report() if self.attached else ()
        return reports[-1] if reports else None

    def _note_warnings(self, report: RequestReport) -> None:
        for name, own in report.plugins.items():
            for sentence in own.warnings:
                self._warned[name] += 1
                self._first.setdefault(name, sentence)


def batches(requests: Sequence[EvalRequest], size: int) -> Iterator[list[EvalRequest]]:
    """Yield requests in batches of at most this size, each with or without images and with one answer length."""
    for _, alike in groupby(requests, key=lambda request: (request.image is None, request.max_new_tokens)):
        rest = list(alike)
        yield from (rest[start : start + size] for start in range(0, len(rest), size))
