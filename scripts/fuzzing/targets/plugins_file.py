"""Target for qkedit-plugins.json next to a model's weights."""

from __future__ import annotations

from random import Random
from typing import Any

from fuzzing.json_trees import mutated_json
from fuzzing.judging import attempt
from fuzzing.sandbox import Sandbox
from fuzzing.target import Outcome, Target
from qkedit.checkpoint.contents import PLUGINS_FILE
from qkedit.plugins.config_file import attach_to, attached_to
from qkedit.plugins.settings import make_plugins, parse_plugins

SEED = {
    "schema": 1,
    "plugins": [
        {"name": "scr", "options": {"layers": "0-3", "strength": 0.5}},
        {"name": "dscr", "options": {"depth": "depth.npy", "blend": 0.5}},
    ],
}


class PluginsFile(Target):
    """Reads the file, creates the plug-ins, and attaches one more."""

    name = "plugins-file"
    subject = "qkedit-plugins.json: names, options, values"
    seconds = 5.0

    def prepare(self) -> None:
        """Parse a plug-in to attach."""
        self._one = parse_plugins(["scr:layers=1"]) or ()

    def generate(self, random: Random) -> bytes:
        """Change the JSON."""
        return mutated_json(SEED, random)

    def check(self, given: bytes) -> Outcome:
        """Read the file as `qkedit plugins list`, `plugins add` and a load do."""
        sandbox = Sandbox(self.work / "case")
        model = sandbox.directory / "model"
        model.mkdir()
        file = model / PLUGINS_FILE
        file.write_bytes(given)
        sandbox.remember()
        outcome = attempt(lambda: self._read(model))
        attempt(lambda: attach_to(model, self._one))
        sandbox.check(file)
        return outcome

    def _read(self, model: Any) -> Any:
        return make_plugins(attached_to(model))
