"""Recognise directories that are not safetensors checkpoints, and explain how to get one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from qkedit.checkpoint.contents import (
    ADAPTER_CONFIG,
    CONFIG_FILE,
    DELTA_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    SINGLE_FILE,
    is_pickled_weights,
    reason_left_out,
)
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.errors import CheckpointError

# The remedy for quantised weights; docs/deploying.md shows the order of steps for each format.
EDIT_FIRST = (
    "edit the unquantised checkpoint (BF16 or F16) first, then quantise or convert the edited directory "
    "(docs/deploying.md)"
)
# The first of the three lines that git-lfs writes in place of a large file.
_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_LARGEST_POINTER = 1024
# Side files that loaders read; a pointer in place of a figure is harmless.
_READ_BY_LOADERS = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")


def refuse_pointers(files: CheckpointFiles, sizes: Mapping[str, int], names: Iterable[str]) -> None:
    """Raise CheckpointError if one of the named files that loaders read is a git-lfs pointer.

    A hub never sends pointers, so it gets no requests.
    """
    if not isinstance(files, LocalFiles):
        return
    for name in names:
        small = len(_POINTER) < sizes[name] <= _LARGEST_POINTER
        if small and name.endswith(_READ_BY_LOADERS) and files.read(name, 0, len(_POINTER)) == _POINTER:
            raise CheckpointError(
                "is a git-lfs pointer instead of the file itself",
                where=f"{files.name}/{name}",
                remedy="run `git lfs pull` in the checkpoint's directory",
            )


def refuse_other_kind(files: CheckpointFiles, sizes: Mapping[str, int]) -> None:
    """Raise CheckpointError if the files are recognised as something other than a safetensors checkpoint."""
    has_weights = SINGLE_FILE in sizes or INDEX_FILE in sizes
    if has_weights and CONFIG_FILE in sizes:
        return

    def refusal(what: str, remedy: str) -> CheckpointError:
        return CheckpointError(what, where=files.name, remedy=remedy)

    if DELTA_FILE in sizes and MANIFEST_FILE in sizes:
        raise refusal(
            "is a delta, which holds only the edited tensors",
            "make the full directory with `qkedit apply DELTA --base MODEL --out DIRECTORY` and name that",
        )
    if ADAPTER_CONFIG in sizes and not has_weights:
        raise refusal(
            "is an adapter (PEFT), not a model",
            "merge it into its base with peft (merge_and_unload, then save_pretrained) and name the merged directory",
        )
    if has_weights:
        return
    parts = sorted({PurePosixPath(name).parts[0] for name in sizes if name.endswith(f"/{CONFIG_FILE}")})
    if "llm" in parts:
        raise refusal(
            f"has its parts in separate directories ({', '.join(parts)}), as VILA does",
            "edit its directory llm with --allow-text-only, and replace llm by the edited directory in a copy",
        )
    of_mistral = [name for name in sizes if PurePosixPath(name).name.startswith("consolidated")]
    if of_mistral and not any(is_pickled_weights(name) for name in of_mistral):
        raise refusal(
            f"the weights are only in Mistral's own format ({min(of_mistral)})",
            "name a repository that has the model's weights for transformers (config.json and model*.safetensors)",
        )
    quantised = sorted(name for name in sizes if name.endswith(".gguf"))
    if quantised:
        raise refusal(
            f"the weights are GGUF ({quantised[0]})",
            EDIT_FIRST,
        )


def no_weights(files: CheckpointFiles, sizes: Mapping[str, int]) -> CheckpointError:
    """Return the error for a directory without readable weights; it names the files that are there instead."""
    reason = files.passed_over().get(SINGLE_FILE)
    if reason:
        return CheckpointError(
            f"{SINGLE_FILE} is {reason}", where=files.name, remedy="download or save the checkpoint again"
        )
    loose = sorted(file for file in sizes if file.endswith(".safetensors") and not reason_left_out(file))
    if loose:
        return CheckpointError(
            f"there are safetensors files ({loose[0]}), but neither {SINGLE_FILE} nor {INDEX_FILE}",
            where=files.name,
            remedy=f"download {INDEX_FILE}",
        )
    pickled = sorted(file for file in sizes if is_pickled_weights(file))
    if pickled:
        return CheckpointError(
            f"the weights are pickled ({pickled[0]}), and unpickling can run any code",
            where=files.name,
            remedy="convert them where you trust them: load the model with transformers and save it with "
            "save_pretrained, which writes safetensors",
        )
    others = sorted(file for file in sizes if reason_left_out(file) not in ("", "a backup"))
    instead = f", but {others[0]} ({reason_left_out(others[0])})" if others else ""
    return CheckpointError(
        f"there are no safetensors weights{instead}",
        where=files.name,
        remedy="name the directory or repository that holds the model's config and shards",
    )
