"""A checkpoint according to its headers and config: the place of every tensor, and the role of every other file.

Loaders (transformers, accelerate) use the index only as a list of files and then read every key of every
listed file. If a tensor occurs twice, the last file wins, whatever the index says, while disk offload follows
the index. One directory can thus load as two different models. So a checkpoint is accepted only if every tensor
occurs exactly once and index and headers agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from qkedit.checkpoint.contents import (
    ATTACHED,
    CONFIG_FILE,
    INDEX_FILE,
    PLUGINS_FILE,
    SINGLE_FILE,
    is_hidden,
    is_litter,
    reason_left_out,
)
from qkedit.checkpoint.io.header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    ShardHeader,
    TensorEntry,
    parse_json_object,
    read_header,
)
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.checkpoint.other_kinds import no_weights, refuse_other_kind, refuse_pointers
from qkedit.errors import CheckpointError

# A config has a few kilobytes, and the largest published index a few megabytes.
MAX_JSON_BYTES = 100_000_000
_LONGEST_MODEL_TYPE = 100
_BROKEN_WEIGHTS = "not a readable safetensors file, and not one of the shards"
# The keys under which families keep the language model's settings; the first that exists is used, else the config.
TEXT_CONFIG_KEYS = (
    ("text_config",),
    ("llm_config",),  # OpenGVLab InternVL
    ("language_config",),  # DeepSeek-VL
    ("thinker_config", "text_config"),  # Qwen-Omni
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint before any tensor data is read."""

    files: CheckpointFiles
    config: dict[str, Any]
    shards: dict[str, ShardHeader]  # by file name, in sorted order
    index: str | None  # name of the *.safetensors.index.json, None for a single file
    side_files: tuple[str, ...]  # copied byte for byte
    left_out: dict[str, str]  # by name, with the reason: other weights, broken links, files that no loader reads

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        """Every tensor by its on-disk name."""
        return {name: entry for shard in self.shards.values() for name, entry in shard.tensors.items()}

    def with_plugins(self) -> Checkpoint:
        """Return the checkpoint with its file of attached plug-ins, if it has one, among the files of the model."""
        if self.left_out.get(PLUGINS_FILE) != ATTACHED:
            return self
        left_out = {file: reason for file, reason in self.left_out.items() if file != PLUGINS_FILE}
        return replace(self, side_files=tuple(sorted((*self.side_files, PLUGINS_FILE))), left_out=left_out)

    @property
    def kept_files(self) -> tuple[str, ...]:
        """All files that belong to the model: shards, index and side files."""
        return (*self.shards, *((self.index,) if self.index else ()), *self.side_files)

    @cached_property
    def kept_bytes(self) -> int:
        """The total size of `kept_files` in bytes."""
        sizes = self.files.sizes()
        return sum(sizes[file] for file in self.kept_files)

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the config, or the config itself if it is flat."""
        for keys in TEXT_CONFIG_KEYS:
            found: Any = self.config
            for key in keys:
                found = found.get(key) if isinstance(found, dict) else None
            if isinstance(found, dict):
                return found
        return self.config

    @property
    def model_type(self) -> str:
        """`model_type` of the config as a text that can be printed and stored, or ""."""
        model_type = self.config.get("model_type")
        if not isinstance(model_type, str):
            return ""
        # An untrusted config may hold lone surrogates or megabytes; names of families are short.
        return model_type[:_LONGEST_MODEL_TYPE].encode(errors="backslashreplace").decode()


def open_checkpoint(files: CheckpointFiles) -> Checkpoint:
    """Read and check config, index and headers, without reading tensor data.

    Raises:
        CheckpointError: a file is missing or broken, a tensor occurs twice, or there are no safetensors weights.
    """
    sizes = {file: size for file, size in files.sizes().items() if not (is_hidden(file) or is_litter(file))}
    refuse_other_kind(files, sizes)
    refuse_pointers(files, sizes, [file for file in (CONFIG_FILE, INDEX_FILE, SINGLE_FILE) if file in sizes])
    config = _read_config(files, sizes)
    weight_map = _read_weight_map(files, sizes)
    if SINGLE_FILE in sizes:
        shard_names = [SINGLE_FILE]
        # An index of this single file is kept; loaders ignore any other index, which lists older weights.
        superseded = set(weight_map.values()) - {SINGLE_FILE}
        indexed = bool(weight_map) and not superseded
        superseded = {INDEX_FILE, *superseded} if superseded else superseded
    elif weight_map:
        shard_names, indexed, superseded = sorted(set(weight_map.values())), True, set()
    else:
        raise no_weights(files, sizes)
    refuse_pointers(files, sizes, shard_names)
    shards = {file: _read_header(files, file, sizes[file]) for file in shard_names}
    _check_each_tensor_once(shards.values())
    if indexed:
        _check_index_agrees(weight_map, shards)
    others = [file for file in sorted(sizes) if file not in shards and not (indexed and file == INDEX_FILE)]
    tensor_names = {name for shard in shards.values() for name in shard.tensors}
    left_out = {file: reason for file, reason in files.passed_over().items() if not is_litter(file)}
    for file in others:
        reason = "superseded by model.safetensors" if file in superseded else reason_left_out(file)
        if not reason and file.endswith(".safetensors"):
            reason = _reason_against_weights(files, file, sizes[file], tensor_names)
        if file == PLUGINS_FILE:
            reason = ATTACHED
        if reason:
            left_out[file] = reason
    side_files = tuple(file for file in others if file not in left_out)
    refuse_pointers(files, sizes, side_files)
    return Checkpoint(
        files=files,
        config=config,
        shards=shards,
        index=INDEX_FILE if indexed else None,
        side_files=side_files,
        left_out=dict(sorted(left_out.items())),
    )


def _read_config(files: CheckpointFiles, sizes: dict[str, int]) -> dict[str, Any]:
    if CONFIG_FILE not in sizes:
        reason = files.passed_over().get(CONFIG_FILE)
        raise CheckpointError(
            f"{CONFIG_FILE} is {reason}" if reason else f"there is no {CONFIG_FILE}",
            where=files.name,
            remedy="name the directory or repository that holds the model's config and shards",
        )
    try:
        # Loaders read the config with Python's json, which permits NaN and repeated keys, so we do the same.
        config = json.loads(_read_whole(files, sizes, CONFIG_FILE).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "is not valid JSON", where=CONFIG_FILE, remedy="download or save the file again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError("is not a JSON object", where=CONFIG_FILE, remedy="download or save the file again")
    return config


def _read_weight_map(files: CheckpointFiles, sizes: dict[str, int]) -> dict[str, str]:
    """Return the index's tensor → shard map, or {} without an index; every named shard exists in the checkpoint."""
    if INDEX_FILE not in sizes:
        return {}
    index = parse_json_object(_read_whole(files, sizes, INDEX_FILE), INDEX_FILE)
    weight_map = index.get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(file, str) for file in weight_map.values())
    ):
        raise CheckpointError(
            "has no weight_map from tensors to shards",
            where=INDEX_FILE,
            remedy="download or save the checkpoint again",
        )
    for tensor, file in weight_map.items():
        if not _is_plain_shard_name(file):
            raise CheckpointError(
                f"maps the tensor to {file!a}, which is not a safetensors file inside the checkpoint",
                where=f"{INDEX_FILE}, tensor {tensor}",
                remedy="do not use this checkpoint unless you trust its publisher",
            )
    # With a single file loaders do not read the index, so the shards it names may be absent.
    missing = sorted(set(weight_map.values()) - set(sizes)) if SINGLE_FILE not in sizes else []
    if missing:
        reason = files.passed_over().get(missing[0])
        raise CheckpointError(
            f"{len(missing)} of {len(set(weight_map.values()))} shards are missing, the first is {missing[0]}"
            + (f" ({reason})" if reason else ""),
            where=files.name,
            remedy="download the missing shards",
        )
    return weight_map


def _is_plain_shard_name(file: str) -> bool:
    """Return whether the name is inside the checkpoint's directory on every system, in its only spelling."""
    path = PurePosixPath(file)
    return (
        file.endswith(".safetensors")
        and not path.is_absolute()
        and ".." not in path.parts
        and path.as_posix() == file
        and not any(character in file for character in "\\:\0")
    )


def _check_each_tensor_once(shards: Iterable[ShardHeader]) -> None:
    first: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor in first:
                raise CheckpointError(
                    f"occurs twice, in {first[tensor]} and in {shard.file}, so which one loads depends on the loader",
                    where=f"tensor {tensor}",
                    remedy="save the checkpoint again with each tensor once",
                )
            first[tensor] = shard.file


def _check_index_agrees(weight_map: dict[str, str], shards: dict[str, ShardHeader]) -> None:
    for tensor, file in weight_map.items():
        if tensor not in shards[file].tensors:
            raise CheckpointError(
                f"{INDEX_FILE} maps the tensor to {file}, which does not hold it",
                where=f"tensor {tensor}",
                remedy="download the index and the shards again, from the same revision",
            )
    for shard in shards.values():
        for tensor in shard.tensors:
            if tensor not in weight_map:
                raise CheckpointError(
                    f"{shard.file} holds the tensor, but {INDEX_FILE} does not list it",
                    where=f"tensor {tensor}",
                    remedy="download the index and the shards again, from the same revision",
                )


def _reason_against_weights(files: CheckpointFiles, file: str, size: int, tensor_names: set[str]) -> str:
    """Return the reason to leave out a safetensors file next to the shards; "" if a model may read it (an adapter)."""
    # The file is read before it is judged: a failing disk or network stops the run.
    length = int.from_bytes(files.read(file, 0, min(size, LENGTH_BYTES)), "little") + LENGTH_BYTES
    if length > min(size, MAX_HEADER_BYTES):
        return _BROKEN_WEIGHTS
    header = files.read(file, 0, length)
    try:
        tensors = read_header(lambda start, end: header[start:end], size, file).tensors
    except CheckpointError:
        return _BROKEN_WEIGHTS
    return "" if tensor_names.isdisjoint(tensors) else "a second copy of the weights"


def _read_whole(files: CheckpointFiles, sizes: dict[str, int], file: str) -> bytes:
    if sizes[file] > MAX_JSON_BYTES:
        raise CheckpointError(
            f"has {sizes[file]} bytes, far more than a file of its kind needs",
            where=file,
            remedy="download or save the file again",
        )
    return files.read(file, 0, sizes[file])


def _read_header(files: CheckpointFiles, file: str, size: int) -> ShardHeader:
    return read_header(lambda start, end: files.read(file, start, end), size, file)
