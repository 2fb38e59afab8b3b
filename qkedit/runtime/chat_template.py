"""A model's chat template: find it, determine the form of turns it accepts, and render it without trusting it.

A template is an untrusted program in Jinja. transformers runs it in a sandbox, which prevents access to files and
code, but not arbitrary failures or endless loops; here it fails with one sentence.

Templates of vision-language models accept a turn as a list of parts (`{"type": "image"}`, `{"type": "text", …}`).
Others were written for language models: they append the content to the role, which fails for a list, or silently
print the list as Python does. So a probe is rendered once for each template, and the first form is used that shows
all words unchanged, and the image:

    parts          every turn as parts
    text-system    the system turn as text, the others as parts
    text-but-user  all but the user's turns as text
    text-turns     turns without images as text, the others as parts
    text           every turn as text, with the processor's placeholder for an image
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from qkedit.errors import CheckpointError, first_sentence

# A turn of transformers: its role, and a list of parts.
Turn = Mapping[str, Any]
# Families that get the bare prompt, by `model_type`. PaliGemma was trained on tasks such as "caption en" (its
# processor adds the rest); Chameleon's processor ends a user's turn itself.
WITHOUT_TEMPLATE = ("paligemma", "chameleon")
# The value of `--chat-template` for the bare prompt.
NONE = "none"
# Real templates take milliseconds.
RENDER_SECONDS = 10.0
# Characters. A conversation that fills a million tokens has half of that; to tokenize much more takes minutes.
MOST_RENDERED = 10_000_000

# For each form, whether a turn is text, by its role and whether it has images.
_IS_TEXT: dict[str, Callable[[str, bool], bool]] = {
    "parts": lambda role, images: False,
    "text-system": lambda role, images: role == "system" and not images,
    "text-but-user": lambda role, images: role != "user" and not images,
    "text-turns": lambda role, images: not images,
    "text": lambda role, images: True,
}
FORMS = tuple(_IS_TEXT)
_LIST_AS_TEXT = re.compile(r"""['"]type['"]\s*:\s*['"](image|text)['"]""")
_WORDS = ("qkeditsystem", "qkeditfirst", "qkeditanswer", "qkeditlast")
_MESSAGE_LENGTH = 200


class TemplateFault(CheckpointError):
    """A chat template is missing, or cannot be rendered."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template and its form.

    Attributes:
        text: the template in Jinja.
        source: its origin: `processor`, `tokenizer` or `option`.
        form: one of FORMS.
    """

    text: str
    source: str
    form: str

    def as_dict(self) -> dict[str, Any]:
        """Return the entry for the record of a run."""
        return {
            "source": self.source,
            "sha256": hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest(),
            "form": self.form,
        }


def template_of(processor: Any, family: str, *, where: str, chosen: str | None = None) -> ChatTemplate | None:
    """Return the template of a model; None for a model that gets the bare prompt.

    Args:
        processor: the model's processor.
        family: the `model_type` of the model.
        where: the user's name for the model.
        chosen: a template in Jinja instead of the model's own, or `none`.

    Raises:
        TemplateFault: there is no template, and the family needs one; or it cannot be rendered.
    """
    if chosen == NONE:
        return None
    found = ("option", chosen) if chosen else _stored(processor, family)
    if found is not None:
        return ChatTemplate(found[1], found[0], _form_of(processor, found[1], where))
    if family in WITHOUT_TEMPLATE:
        return None
    raise TemplateFault(
        "has no chat template, neither in its processor's files nor in its tokenizer's",
        where=where,
        remedy="put chat_template.jinja next to its weights, or give --chat-template FILE (none for the bare prompt)",
    )


def render(processor: Any, template: ChatTemplate | None, turns: Sequence[Turn], *, where: str) -> str:
    """Render a conversation as text for the processor, with a placeholder for each image.

    Args:
        processor: the model's processor.
        template: the model's template; None for the bare prompt.
        turns: turns of transformers, with every content a list of parts.
        where: the user's name for the model.

    Raises:
        TemplateFault: the template does not accept the conversation, or there is no template for several turns.
    """
    if template is not None:
        return _rendered(processor, template.text, _in_form(processor, template.form, turns), where)
    if len(turns) > 1:
        raise TemplateFault("it has no chat template for several turns", where=where, remedy="send a single turn")
    images = [part for part in turns[0]["content"] if part["type"] == "image"]
    return _placeholder(processor) * len(images) + _text_of(turns[0])


def user_turn(prompt: str, images: int) -> Turn:
    """Return a question about this number of images as a turn."""
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": prompt}]}


def last_question(turns: Sequence[Turn]) -> str:
    """Return the text of the user's last turn, its parts in lines of their own; "" without one."""
    asked = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
    return "\n".join(part["text"] for part in asked["content"] if part["type"] == "text") if asked else ""


def _stored(processor: Any, family: str) -> tuple[str, str] | None:
    """Return the origin of the stored template, and the template."""
    # A tokenizer may have been made for the language model that a family without a template was built on.
    holders = {"processor": processor} | (
        {} if family in WITHOUT_TEMPLATE else {"tokenizer": getattr(processor, "tokenizer", None)}
    )
    for source, holder in holders.items():
        template = getattr(holder, "chat_template", None)
        if isinstance(template, Mapping):  # several templates by name
            template = template.get("default")
        if isinstance(template, str) and template.strip():
            return source, template
    return None


_forms: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()


def _form_of(processor: Any, text: str, where: str) -> str:
    known = _forms.setdefault(processor, {})
    if text not in known:
        _refuse_powers(text, where)
        known[text] = _probed(processor, text, where)
    return known[text]


def _refuse_powers(text: str, where: str) -> None:
    """Raise TemplateFault for a template with powers: 10**10**8 is one step, which nothing can break off."""
    from jinja2 import Environment, TemplateSyntaxError

    before = ""
    try:
        for _, kind, word in Environment().lex(text):
            # What follows one of these is `**arguments` of a call.
            if kind == "operator" and word == "**" and before not in ("(", ","):
                raise TemplateFault(
                    "its chat template raises to a power, which no conversation needs",
                    where=where,
                    remedy="give another: --chat-template FILE",
                )
            before = before if kind == "whitespace" else word
    except TemplateSyntaxError:
        return  # rendering will say so


def _probed(processor: Any, text: str, where: str) -> str:
    """Return the form of turns that a template accepts, by rendering probes. Raises TemplateFault if none fits."""
    system, first, answer, last = (
        {"role": role, "content": [{"type": "text", "text": word}]}
        for role, word in zip(("system", "user", "assistant", "user"), _WORDS, strict=True)
    )
    asked = user_turn(_WORDS[-1], images=1)
    faults: dict[str, TemplateFault] = {}

    def shown(form: str, *turns: Turn) -> str | None:
        """Return the rendered conversation if it shows all words."""
        try:
            rendered = _rendered(processor, text, _in_form(processor, form, turns), where)
        except TemplateFault as fault:
            faults.setdefault(form, fault)
            return None
        words = [part["text"] for turn in turns for part in turn["content"] if part["type"] == "text"]
        as_they_are = not _LIST_AS_TEXT.search(rendered) and all(word in rendered for word in words)
        return rendered if as_they_are else None

    told = [form for form in FORMS if shown(form, asked) is not None]
    if isinstance(getattr(processor, "image_token", None), str):
        # Without a placeholder for an image, the processor inserts images itself.
        # In all forms but one a turn with an image is a list of parts.
        whole = {form: form if form == "text" else "parts" for form in told}
        told = [form for form in told if shown(whole[form], asked) != shown(whole[form], last)]
    # Not every template accepts a system turn, or more than one turn.
    for turns in ((system, first, answer, asked), (first, answer, asked), (asked,)):
        for form in told:
            if shown(form, *turns) is not None:
                return form
    if len(faults) == len(FORMS):
        raise faults[FORMS[0]]
    raise TemplateFault(
        "its chat template leaves out the question or the image",
        where=where,
        remedy="give another: --chat-template FILE",
    )


def _in_form(processor: Any, form: str, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    def content(role: str, parts: Sequence[Mapping[str, Any]]) -> Any:
        if not _IS_TEXT[form](role, any(part["type"] == "image" for part in parts)):
            return [dict(part) for part in parts]
        return "\n".join(_placeholder(processor) if part["type"] == "image" else part["text"] for part in parts)

    return [{**turn, "content": content(turn["role"], turn["content"])} for turn in turns]


def _placeholder(processor: Any) -> str:
    name = getattr(processor, "image_token", None)
    return name if isinstance(name, str) else "<image>"


def _text_of(turn: Turn) -> str:
    return "\n".join(part["text"] for part in turn["content"] if part["type"] == "text")


def _rendered(processor: Any, text: str, turns: list[dict[str, Any]], where: str) -> str:
    try:
        with _time_limit(RENDER_SECONDS):
            rendered = str(
                processor.apply_chat_template(turns, chat_template=text, add_generation_prompt=True, tokenize=False)
            )
    except _OutOfTime:
        said = f"runs for more than {RENDER_SECONDS:g} seconds"
    except Exception as error:  # an untrusted program may raise anything
        said = f"does not accept the conversation ({type(error).__name__}: {first_sentence(error)[:_MESSAGE_LENGTH]})"
    else:
        if len(rendered) <= MOST_RENDERED:
            return rendered
        said = f"makes a text of {len(rendered)} characters"
    raise TemplateFault(
        f"its chat template {said}", where=where, remedy="change the conversation, or give --chat-template FILE"
    )


class _OutOfTime(BaseException):
    """Raised at the time limit. Not an Exception, so that filters of Jinja do not catch it."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End the block in this thread after this time.

    A trace function works in any thread, while a signal would reach only the main thread. Lines of templates and of
    Jinja are traced. Other functions are not ended: in a callback of a weak reference, for example, Python ignores the
    exception and stops tracing, and the block would never end.
    """
    deadline = time.monotonic() + seconds

    def watch(frame: Any, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if file != "<template>" and "jinja2" not in file:
            return None
        if time.monotonic() > deadline:
            raise _OutOfTime
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
