"""Rendering a model's chat template as transformers does, in a sandbox.

A template is a program that came with somebody's files: it runs in Jinja's immutable
sandbox and sees nothing but the conversation and a few names.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from phi4_jax.common.errors import DataError
from phi4_jax.data.documents import Message


class _Generation(jinja2.ext.Extension):
  """`{% generation %}` marks what an assistant wrote; here it changes nothing."""

  tags = {"generation"}  # noqa: RUF012 (what Jinja asks for)

  def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
  return datetime.datetime.now().strftime(pattern)


def _to_json(value: Any, **options: Any) -> str:
  # Jinja's own filter escapes what is special in HTML.
  options.setdefault("ensure_ascii", False)
  return json.dumps(value, **options)


class JinjaTemplate:
  """A chat template.

  Raises:
    DataError: if the source is no template.
  """

  def __init__(self, source: str):
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
      self._template = environment.from_string(source)
    except jinja2.TemplateError as error:
      raise DataError(f"The chat template cannot be read: {error}.") from error

  def render(
    self,
    messages: Sequence[Message],
    *,
    prompt: bool,
    tokens: Mapping[str, str | None],
  ) -> str:
    """Writes a conversation as text.

    Args:
      messages: the turns.
      prompt: the template's add_generation_prompt.
      tokens: names that templates may use, such as bos_token and eos_token.

    Raises:
      DataError: if the template refuses the conversation or fails.
    """
    named = {name: token for name, token in tokens.items() if token is not None}
    try:
      return self._template.render(
        messages=[dict(message) for message in messages],
        add_generation_prompt=prompt,
        tools=None,
        documents=None,
        **named,
      )
    except Exception as error:  # a template may fail in any way Python can
      raise DataError(f"The chat template failed: {error}.") from error
