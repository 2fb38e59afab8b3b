"""Target for the files that transformers loads next to the weights: processor, tokenizer, chat template, config."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import dataclass
from random import Random
from unittest.mock import patch

from transformers.utils import logging as transformers_logging

from fuzzing import seeds
from fuzzing.byte_strings import mutated, mutated_text
from fuzzing.commands import command
from fuzzing.json_trees import mutated_json
from fuzzing.picture_bytes import png
from fuzzing.sandbox import Sandbox
from fuzzing.target import Outcome, Target

TEMPLATE = "chat_template.jinja"
JSON = (
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "config.json",
    "tokenizer.json",
)
# Templates that fail, do not end, or return far too much text.
HOSTILE = (
    "{{ ''.__class__.__mro__ }}",
    "{% for x in range(10**9) %}x{% endfor %}",
    "{{ 'x' * 10**8 }}",
    "{{ raise_exception('no') }}",
    "{% if %}",
    "{{ messages[99].content }}",
    "{{ messages[0]['content'] + 'x' }}",
    "{{ 1 / 0 }}",
    "{{ undefined.attribute }}",
    "{% include 'x' %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "",
)


@dataclass(frozen=True)
class ChangedFile:
    """A file of the demo with new content."""

    name: str
    content: bytes


class Loading(Target):
    """Runs `qkedit generate` on a copy of the demo with one changed file."""

    name = "loading"
    subject = "processor, tokenizer, template and config of a model that is run by `generate`"
    seconds = 120.0
    megabytes = 1500

    def prepare(self) -> None:
        """Copy the demo."""
        self.seed = seeds.demo(self.work / "seed")
        self._picture = self.work / "picture.png"
        self._picture.write_bytes(png(48, 48))
        # The command hides progress bars by a variable, which the library reads only once.
        self._shows_bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def close(self) -> None:
        """Show the library's progress bars again."""
        if self._shows_bars:
            transformers_logging.enable_progress_bar()

    def generate(self, random: Random) -> ChangedFile:
        """Change a JSON file, the template, or any bytes."""
        name = random.choice((TEMPLATE, TEMPLATE, *JSON))
        content = (self.seed / name).read_bytes()
        if name == TEMPLATE:
            text = random.choice(HOSTILE) if random.random() < 0.4 else mutated_text(content.decode(), random)
            return ChangedFile(name, text.encode("utf-8", "surrogatepass"))
        if random.random() < 0.2:
            return ChangedFile(name, mutated(content, random))
        return ChangedFile(name, mutated_json(json.loads(content), random))

    def check(self, given: ChangedFile) -> Outcome:
        """Generate three tokens; a prompt on the terminal would not be answered."""
        sandbox = Sandbox(self.work / "case")
        model = sandbox.directory / "model"
        shutil.copytree(self.seed, model)
        (model / given.name).write_bytes(given.content)
        sandbox.remember()
        with patch.object(sys, "stdin", io.StringIO("y\ny\n")):
            outcome = command(
                "generate", model, "--image", self._picture, "--prompt", "What is there?", "--max-new-tokens", "3",
                "--device", "cpu",
            )  # fmt: skip
        sandbox.check()
        return outcome
