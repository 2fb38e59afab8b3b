"""What the records of two runs say about comparing them."""

from __future__ import annotations

from typing import Any

from qkedit.evaluation.files.result_files import ScoredRun

# The settings in result files of `qkedit eval` that must agree, so that a difference comes from the models.
ASKED_ALIKE = ("prompt", "dtype", "attention", "generation_config", "chat_template")


def doubts(a: Any, b: Any) -> list[str]:
    """Return the reasons against comparing two runs, from their records; scores of answer files have no record."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return []
    different = [name for name in ASKED_ALIKE if a.get(name) != b.get(name)]
    lengths_a, lengths_b = ((run.get("decoding") or {}).get("max_new_tokens", {}) for run in (a, b))
    if any(lengths_a[part] != lengths_b[part] for part in lengths_a.keys() & lengths_b.keys()):
        different.append("max_new_tokens")
    found = [f"the runs differ in {', '.join(different)}, not in the model alone"] if different else []
    weights, others = ([run.get("weights_sha256"), run.get("edits")] for run in (a, b))
    known = weights[0] is not None
    if known and weights == others and a.get("plugins") == b.get("plugins"):
        found.append("both runs are of the same weights and plug-ins")
    if known and weights != others and a.get("plugins") != b.get("plugins"):
        names = f"{_plugin_names(a) or 'none'} against {_plugin_names(b) or 'none'}"
        found.append(f"the runs differ in weights and plug-ins ({names}), so neither alone explains a difference")
    return found


def _plugin_names(run: Any) -> str:
    """Return the plug-ins of a run, from its record."""
    plugins = run.get("plugins") if isinstance(run, dict) else None
    named = [plugin.get("name") for plugin in plugins or () if isinstance(plugin, dict)]
    return " + ".join(map(str, named))


def called(run: ScoredRun) -> str:
    """Return a run's file, and the plug-ins that acted in it."""
    names = _plugin_names(run.document.get("run"))
    return f"{run.file} (with {names})" if names else str(run.file)
