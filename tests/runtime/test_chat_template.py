"""Test published chat templates, and malicious ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.errors import QkeditError, UsageError
from qkedit.runtime import chat_template
from qkedit.runtime.chat_template import TemplateFault, render, template_of, user_turn
from qkedit.runtime.generation import LoadedModel, Prompt, batch_inputs, load, request_inputs
from qkedit.serving.requests.chat_request import ImageUrl, Message
from qkedit.serving.requests.conversations import conversation_inputs
from qkedit.serving.requests.request_errors import RequestError
from tests.serving.served_models import picture

PARTS = (
    "{% for m in messages %}{{ m.role }}:{% for p in m.content %}"
    "{{ ' <image>' if p.type == 'image' else ' ' + p.text }}{% endfor %};{% endfor %}it:"
)
CONCATENATES = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ';' }}{% endfor %}it:"
PRINTS = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }};{% endfor %}it:"
SYSTEM_IS_TEXT = (
    "{% if messages[0].role == 'system' %}{{ 'S: ' + messages[0].content + ';' }}{% set messages = messages[1:] %}"
    "{% endif %}" + PARTS
)
TEXT_BUT_USER = (
    "{% for m in messages %}{% if m.role == 'user' %}user:{% for p in m.content %}"
    "{{ ' <image>' if p.type == 'image' else ' ' + p.text }}{% endfor %}{% else %}{{ m.role + ': ' + m.content }}"
    "{% endif %};{% endfor %}it:"
)
TEXT_TURNS = (
    "{% for m in messages %}{{ m.role }}:{% if 'image' in m.content | map(attribute='type') %}{% for p in m.content %}"
    "{{ ' <image>' if p.type == 'image' else ' ' + p.text }}{% endfor %}{% else %}{{ ' ' + m.content }}{% endif %};"
    "{% endfor %}it:"
)
NO_SYSTEM = (
    "{% for m in messages if m.role == 'system' %}{{ raise_exception('System role\nnot supported') }}{% endfor %}"
    + PARTS
)
WITHOUT_IMAGES = (
    "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}"
)
CONVERSATION = [
    {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
    user_turn("is it red", 1),
    {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
    user_turn("why", 0),
]


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(SMALL_DEMO, dtype="float32")


def rendered(demo: LoadedModel, template: str, turns: Any = CONVERSATION) -> str:
    return replace(demo, chat_template=template).text(turns)


@pytest.mark.parametrize(
    ("template", "form", "expected"),
    [
        (PARTS, "parts", "system: be brief;user: <image> is it red;assistant: no;user: why;it:"),
        (CONCATENATES, "text", "system: be brief;user: <image>\nis it red;assistant: no;user: why;it:"),
        (PRINTS, "text", "system: be brief;user: <image>\nis it red;assistant: no;user: why;it:"),
        (SYSTEM_IS_TEXT, "text-system", "S: be brief;user: <image> is it red;assistant: no;user: why;it:"),
        (TEXT_BUT_USER, "text-but-user", "system: be brief;user: <image> is it red;assistant: no;user: why;it:"),
        (TEXT_TURNS, "text-turns", "system: be brief;user: <image> is it red;assistant: no;user: why;it:"),
        (NO_SYSTEM, "parts", None),
    ],
)
def test_turns_have_the_form_that_the_template_needs(
    demo: LoadedModel, template: str, form: str, expected: str | None
) -> None:
    found = replace(demo, chat_template=template).template
    assert found is not None
    assert found.as_dict() == {
        "source": "option",
        "sha256": hashlib.sha256(template.encode()).hexdigest(),
        "form": form,
    }
    if expected is not None:
        assert rendered(demo, template) == expected
    # A single turn in any form, and never the Python text of a list.
    assert "<image>" in rendered(demo, template, [user_turn("is it red", 1)])
    assert "type" not in rendered(demo, template, [user_turn("is it red", 1)])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages.__class__.__base__.__subclasses__() }}", "Security|Undefined"),
        ("{{ 'x'.format_map.__globals__.os.system('true') }}", "Security|Undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ range(1000000000) | list }}", "OverflowError"),
        ("{{ 10**10**8 }}", "raises to a power"),
        ("{% set n = 9 %}{{ f(**{}) }}{{ (n)\n ** n }}", "raises to a power"),
        ("{{ 'a' * 20000000 }}", "makes a text of 20000000 characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ 'a' * 1000000000000000 }}", "MemoryError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% include '/etc/passwd' %}", "TypeError|Template"),
        ("{{ raise_exception('\x1b[31mred') }}", "TemplateError"),
        (WITHOUT_IMAGES, "leaves out the question or the image"),
        ("constant", "leaves out the question or the image"),
    ],
)
def test_a_failing_template_is_one_sentence(demo: LoadedModel, template: str, said: str) -> None:
    with pytest.raises(TemplateFault, match=said) as caught:
        rendered(demo, template, [user_turn("is it red", 1)])
    assert caught.value.where == SMALL_DEMO
    assert "--chat-template" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_stars_other_than_powers_are_allowed(demo: LoadedModel) -> None:
    template = (
        "{# 2**2 #}** {{ '2**2' }} {% macro m() %}{{ kwargs.a ~ kwargs.b }}{% endmacro %}"
        "{{ m(**{'a': '1', 'b': '2'}) }}{{ m(a='1', **{'b': '2'}) }}" + PARTS
    )
    assert rendered(demo, template, [user_turn("is it red", 1)]).startswith("** 2**2 1212user: <image> is it red")


ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% set c = a + b %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [ENDLESS, "{{ range(90000) | map('string') | map('length') | sum }}" * 2000])
def test_an_endless_template_is_stopped_in_any_thread(
    demo: LoadedModel, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """A server prepares requests in a separate thread, which does not receive signals."""
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.2)
    faults: list[Exception] = []

    def ask() -> None:
        try:
            rendered(demo, template, [user_turn("is it red", 1)])
        except TemplateFault as fault:
            faults.append(fault)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(60)
    assert len(faults) == 1
    assert "runs for more than 0.2 seconds" in str(faults[0])


def test_the_time_limit_survives_a_callback_whose_exceptions_are_ignored() -> None:
    class Thing:
        """An object with weak references."""

    def wait() -> None:
        time.sleep(0.06)

    def after(reference: object) -> None:
        wait()
        wait()  # a call after the limit

    def drop() -> None:
        thing = Thing()
        reference = weakref.ref(thing, after)
        del thing
        assert reference() is None

    program = compile("for number in range(10**5):\n    if number == 0:\n        drop()\n", "<template>", "exec")
    with pytest.raises(chat_template._OutOfTime), chat_template._time_limit(0.05):
        exec(program, {"drop": drop})


PIECES = [
    *("{% for m in messages %}", "{% for p in m.content %}", "{% endfor %}"),
    *("{% if m.content is string %}", "{% endif %}"),
    *("{{ m.content }}", "{{ m.content + 'x' }}", "{{ m['content'][0] }}", "{{ m.content[0].text }}", "{{ p.text }}"),
    *("{{ m.role }}", "{{ messages }}", "{{ loop.index / 0 }}", "{% set m = 1 %}", "{{", "%}", " <image> "),
]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_any_template_shows_the_question_or_is_refused(template: str) -> None:
    processor = load_processor()
    try:
        found = template_of(processor, "llava", where="it", chosen=template or "{{ 1 }}")
    except TemplateFault:
        return
    text = render(processor, found, [user_turn("is it red", 1)], where="it")
    assert "is it red" in text
    assert "'type':" not in text


def load_processor(cache: list[Any] = []) -> Any:  # noqa: B006  # one for all examples
    if not cache:
        cache.append(load(SMALL_DEMO).processor)
    return cache[0]


def test_a_conversation_refused_by_the_template_is_an_error_of_the_client(demo: LoadedModel) -> None:
    asked = [Message("system", ("be brief",)), Message("user", (ImageUrl(""), "is it red"))]
    with pytest.raises(RequestError, match="System role") as caught:
        conversation_inputs(replace(demo, chat_template=NO_SYSTEM), asked, [picture(1)])
    assert caught.value.status == 400
    for template in (CONCATENATES, PRINTS):
        inputs = conversation_inputs(replace(demo, chat_template=template), asked, [picture(1)])
        assert int((inputs["input_ids"] == demo.model.config.image_token_id).sum()) == 64
    with pytest.raises(RequestError, match="no chat template for several turns"):
        conversation_inputs(replace(demo, chat_template="none"), asked, [picture(1)])


def test_the_template_of_the_tokenizer_is_used_if_the_processor_has_none(tmp_path: Path, demo: LoadedModel) -> None:
    directory = copied(tmp_path)
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(TemplateFault, match=r"no chat template.*put chat_template\.jinja next to its weights"):
        load(str(directory))
    edit(directory / "tokenizer_config.json", chat_template=[{"name": "tools", "template": "x"}])
    with pytest.raises(TemplateFault, match="no chat template"):
        load(str(directory))
    edit(directory / "tokenizer_config.json", chat_template=[{"name": "default", "template": template}])
    loaded = load(str(directory), dtype="float32")
    assert loaded.template_record == {**(demo.template_record or {}), "source": "tokenizer"}
    assert loaded.text(CONVERSATION) == demo.text(CONVERSATION)
    (directory / "own.jinja").write_text(CONCATENATES)
    assert load(str(directory), chat_template=str(directory / "own.jinja")).text(CONVERSATION[1:2]) == (
        "user: <image>\nis it red;it:"
    )
    assert load(str(directory), chat_template="none").template_record is None
    (directory / "empty.jinja").write_text("\n")
    for name, said in {"empty.jinja": "is empty", "missing": "cannot be read"}.items():
        with pytest.raises(UsageError, match=f"--chat-template: .*{said}"):
            load(str(directory), chat_template=str(directory / name))


def test_families_without_a_template_get_the_bare_prompt() -> None:
    processor = SimpleNamespace(
        image_token="<image>", chat_template=None, tokenizer=SimpleNamespace(chat_template="the language model's")
    )
    for family in chat_template.WITHOUT_TEMPLATE:
        assert template_of(processor, family, where="it") is None
    assert render(processor, None, [user_turn("caption en", 1)], where="it") == "<image>caption en"


@pytest.mark.parametrize("file", ["processor_config.json", "chat_template.json"])
def test_templates_in_files_of_older_versions_are_read(tmp_path: Path, demo: LoadedModel, file: str) -> None:
    directory = copied(tmp_path)
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    if not (directory / file).exists():
        (directory / file).write_text("{}")
    edit(directory / file, chat_template=template)
    assert load(str(directory)).template_record == demo.template_record


def test_a_processor_without_the_number_of_image_tokens_is_refused(tmp_path: Path, demo: LoadedModel) -> None:
    directory = copied(tmp_path)
    (directory / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    old = request_inputs(load(str(directory), dtype="float32"), [picture(1)], "is it red")
    torch.testing.assert_close(dict(old), dict(request_inputs(demo, [picture(1)], "is it red")))


def test_a_processor_without_images_is_named(tmp_path: Path) -> None:
    directory = copied(tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (directory / name).unlink()
    edit(directory / "tokenizer_config.json", processor_class=None)
    with pytest.raises(QkeditError, match=r"preprocessor_config\.json"):
        load(str(directory))


def test_a_refusal_of_the_processor_is_one_sentence(demo: LoadedModel) -> None:
    with pytest.raises(QkeditError, match="its processor does not accept the prompt and the images"):
        # More placeholders than images.
        batch_inputs(demo, [Prompt("<image><image><image>", (Image.new("RGB", (8, 8)),) * 2)])


def copied(tmp_path: Path) -> Path:
    return shutil.copytree(demo_checkpoint(SMALL_DEMO), tmp_path / "model")


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
