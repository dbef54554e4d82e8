"""Chat templates: a checkpoint's own text of a conversation, as `apply_chat_template` of transformers renders it.

A template is a program in Jinja that came with the checkpoint, so it runs in Jinja's sandbox.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxnlp.errors import UserError
from jaxnlp.interop.source_files import SourceFiles
from jaxnlp.interop.text_ends import special_names

FILE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"
Messages = Sequence[Mapping[str, Any]]


def chat_template(source: SourceFiles) -> str:
    """The checkpoint's template: of `chat_template.jinja`, else of `tokenizer_config.json`.

    Raises:
        UserError: the checkpoint has none, or several without a default.
    """
    if FILE in source.files:
        return source.text(FILE)
    template = source.json(SETTINGS).get("chat_template")
    if isinstance(template, list):  # several, by name
        by_name = {str(entry.get("name")): entry.get("template") for entry in template if isinstance(entry, dict)}
        if not isinstance(by_name.get("default"), str):
            raise UserError(f"{SETTINGS}: chat_template: no template named default, only {', '.join(by_name)}")
        template = by_name["default"]
    if not isinstance(template, str):
        raise UserError(
            f"chat: the checkpoint has no chat template; expected {FILE}, or chat_template in {SETTINGS}; "
            "prompt the model without chat"
        )
    return template


def render_chat(source: SourceFiles, messages: Messages, **variables: Any) -> str:
    """The text of a conversation that the model continues with the assistant's answer.

    Args:
        source: the checkpoint's files. messages: each with "role" and "content", as {"role": "user", "content": "Hi"}.
        variables: further values that the template reads, as tools=[...].

    Raises:
        UserError: there is no template, or it does not accept the messages.
    """
    template = chat_template(source)
    values = {**special_names(source), "tools": None, "documents": None, **variables}
    try:
        compiled = _environment().from_string(template)
        return compiled.render(messages=[dict(message) for message in messages], add_generation_prompt=True, **values)
    except Exception as e:  # a template raises what it likes, besides Jinja's own errors
        raise UserError(f"chat: the checkpoint's template does not accept these messages ({e})") from e


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """The block {% generation %}, which marks the assistant's text for training; here its content alone."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without the escapes for HTML of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
