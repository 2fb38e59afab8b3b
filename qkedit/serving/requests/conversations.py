"""Convert a conversation with images to a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qkedit.runtime.chat_template import TemplateFault, Turn, last_question
from qkedit.runtime.generation import LoadedModel, ProcessorFault, Prompt, batch_inputs
from qkedit.serving.requests.chat_request import ImageUrl, Message
from qkedit.serving.requests.request_errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image


# The default length of an answer in tokens, if the context permits; the same as in transformers' own server.
DEFAULT_ANSWER = 1024


def conversation_inputs(
    loaded: LoadedModel, messages: Sequence[Message], images: Sequence[Image]
) -> Mapping[str, Any]:
    """Return the model's inputs for a conversation in its chat template.

    Args:
        loaded: the model and its processor.
        messages: the turns.
        images: the images of all `ImageUrl`s in them, in order.

    Raises:
        RequestError: the template or the processor refuses the conversation.
    """
    try:
        turns = [_turn(message) for message in messages]
        return batch_inputs(loaded, [Prompt(loaded.text(turns), tuple(images), last_question(turns))])
    except (TemplateFault, ProcessorFault) as error:
        raise RequestError(f"the model refuses them: {error.what}", where="messages", remedy="change them") from error


def _turn(message: Message) -> Turn:
    """Convert a message to a turn of transformers."""
    parts = [
        {"type": "image"} if isinstance(part, ImageUrl) else {"type": "text", "text": part} for part in message.content
    ]
    return {"role": message.role, "content": parts}


def check_text_length(texts: Sequence[str], context: int, longest_token: int) -> None:
    """Raise RequestError for texts that cannot fit into the context, before tokenizing them."""
    characters = sum(map(len, texts))
    if characters > context * longest_token:
        raise RequestError(
            f"{characters} characters are more than the model's context of {context} tokens",
            where="messages",
            remedy="send less",
            code="context_length_exceeded",
        )


def check_length(prompt: int, asked: int | None, context: int) -> int:
    """Return the maximum number of tokens of an answer.

    Args:
        prompt: the number of tokens of the prompt.
        asked: the requested maximum; None for the default, or the rest of the context.
        context: the maximum number of tokens of prompt and answer together.

    Raises:
        RequestError: they do not fit.
    """
    if prompt >= context or prompt + (asked or 1) > context:
        answer = f" and {asked} of the answer" if asked and prompt < context else ""
        raise RequestError(
            f"{prompt} tokens of the prompt{answer} are more than the model's context of {context}",
            where="messages",
            remedy="ask for less" if answer else "send less",
            code="context_length_exceeded",
        )
    return asked or min(DEFAULT_ANSWER, context - prompt)
