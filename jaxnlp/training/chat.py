"""Conversations with a model that began from a checkpoint with a chat template."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxnlp.data.special_text import with_special_tokens
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError
from jaxnlp.inference.decode import Generator
from jaxnlp.training.load import Loaded

Messages = Sequence[Mapping[str, Any]]
Chat = tuple[Generator, Tokenizer, list[str]]


def as_chat(loaded: Loaded, generator: Generator, conversations: Sequence[str | Messages]) -> Chat:
    """(generator, tokenizer, prompts) whose continuations are the assistant's answers.

    The prompts contain all special tokens, so the generator adds none.

    Args:
        conversations: messages, as for `render_chat`, or the text of a user's message.

    Raises:
        UserError: the model has no chat template, or the template does not accept the messages.
    """
    if loaded.source is None:
        raise UserError(
            "chat: the model was not imported, so it has no chat template; expected a run of experiments.import, or a "
            "folder in Hugging Face's layout"
        )
    try:
        from jaxnlp.interop.chat_template import render_chat
    except ImportError:
        raise UserError("chat: jinja2 is not installed, which renders chat templates: pip install -e '.[hf]'") from None
    source = loaded.source
    prompts = [render_chat(source, _messages(conversation)) for conversation in conversations]
    tokenizer = with_special_tokens(loaded.saved.tokenizer)
    if generator.encoder_decoder:
        return dataclasses.replace(generator, encoder_eos_ids=()), tokenizer, prompts
    return dataclasses.replace(generator, decoder_start_ids=()), tokenizer, prompts


def _messages(conversation: str | Messages) -> Messages:
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]
    messages: list[Any] = list(conversation)
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            expected = 'expected messages, as {"role": "user", "content": "Hi"}'
            raise UserError(f"chat: {message!r}: {expected}")
    if not messages:
        raise UserError("chat: no messages; expected at least one")
    return messages
