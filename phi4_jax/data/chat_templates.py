"""Which of the known chat formats a model's template writes.

The template is rendered on a number of conversations and compared with what the
known formats write. Equal in all: that is the format. Equal in plain exchanges only:
the format, and a warning that shows the first conversation that differs. Otherwise
an error: a guessed format would make a model worse without a word.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from phi4_jax.common.errors import DataError
from phi4_jax.data.chat_formats import CHAT_FORMATS, ChatFormat, get_chat_format
from phi4_jax.data.documents import ROLES, Message
from phi4_jax.data.jinja_template import JinjaTemplate


class _Probe(NamedTuple):
  """A conversation; `prompt` asks for the header of an answer."""

  messages: list[Message]
  prompt: bool


def _talk(roles: str, *contents: str) -> list[Message]:
  """`_talk("su", "Be kind.", "Hi")` is a system and a user message."""
  names = {role[0]: role for role in ROLES}
  return [
    cast(Message, {"role": names[letter], "content": content})
    for letter, content in zip(roles, contents, strict=True)
  ]


# A format must agree on these: answers are sampled after the first kind, and models
# are trained on the second.
_EXCHANGES = (
  _Probe(_talk("u", "What is 2 + 2?"), True),
  _Probe(_talk("ua", "What is 2 + 2?", "It is 4."), False),
  _Probe(_talk("uau", "Hi", "Hello!", "And 3 + 3?"), True),
  _Probe(_talk("uaua", "Hi", "Hello!", "And 3 + 3?", "It is 6."), False),
)
_OTHERS = (
  _Probe(_talk("su", "Be brief.", "Hi"), True),
  _Probe(_talk("sua", "Be brief.", "Hi", "Hello!"), False),
  _Probe(_talk("suau", "Be brief.", "Hi", "Hello!", "Bye"), True),
  _Probe(_talk("u", "  spaces and\nlines \n"), True),
  _Probe(_talk("ua", "\n\nx", "\n y\t"), False),
  _Probe(_talk("sua", " s ", "", "z "), False),
  _Probe(_talk("u", "{{ x }} {% if %} <b> & 'q' \"r\" \u00e9\u4f60\U0001f600"), True),
  _Probe(_talk("u", "Hi"), False),
  _Probe(_talk("ua", "Hi", "Hello!"), True),
)


class ChosenFormat(NamedTuple):
  """A format, and what a person should know about the choice ("" if nothing)."""

  chat: ChatFormat
  warning: str


def choose_chat_format(
  source: str, *, names: set[str], tokens: Mapping[str, str | None], where: str
) -> ChosenFormat:
  """Finds the format that a template writes.

  Args:
    source: the template.
    names: the special tokens that the vocabulary has.
    tokens: bos_token, eos_token and so on, by name.
    where: whose template it is, for messages.

  Raises:
    DataError: if none of the known formats fits.
  """
  template = JinjaTemplate(source)

  def render(probe: _Probe) -> str:
    try:
      return template.render(probe.messages, prompt=probe.prompt, tokens=tokens)
    except DataError as error:
      return f"({error})"

  exchanges = [(probe, render(probe)) for probe in _EXCHANGES]
  others = [(probe, render(probe)) for probe in _OTHERS]
  near: ChatFormat | None = None
  for known in CHAT_FORMATS.values():
    for chat in _variants(known, exchanges[0], tokens):
      if not chat.control_names() <= names or not _agrees(chat, exchanges):
        continue
      if _agrees(chat, others):
        return ChosenFormat(chat, "")
      near = near or chat
  if near is None:
    shown = exchanges[0][1]
    raise DataError(
      f"The chat template of {where} writes none of the known formats "
      f"({', '.join(CHAT_FORMATS)}). A question comes out as {shown[:200]!r}. Name the "
      "format to use instead (--chat_format=NAME)."
    )
  differing = [(p, text) for p, text in others if not _agrees(near, [(p, text)])]
  probe, text = differing[0]
  return ChosenFormat(
    near,
    f"The chat template of {where} writes the format {near.name!r} in plain exchanges "
    f"but differs in {len(differing)} of {len(exchanges) + len(others)} test "
    f"conversations; {near.name!r} is used. First difference, for "
    f"{[dict(m) for m in probe.messages]} with add_generation_prompt={probe.prompt}: "
    f"the template gives {text!r}, {near.name!r} gives "
    f"{near.render(probe.messages, prompt=probe.prompt)!r}.",
  )


def name_chat_format(
  name: str, *, names: set[str], tokens: Mapping[str, str | None], where: str
) -> ChatFormat:
  """Returns the known format of a name.

  Raises:
    DataError: if it is unknown, or the vocabulary lacks its control tokens.
  """
  chat = get_chat_format(name)
  missing = sorted(chat.control_names() - names)
  if missing:
    raise DataError(
      f"The chat format {name!r} needs the special tokens {', '.join(missing)}, which "
      f"the vocabulary of {where} does not have."
    )
  return chat


def _agrees(chat: ChatFormat, rendered: list[tuple[_Probe, str]]) -> bool:
  return all(chat.render(p.messages, prompt=p.prompt) == text for p, text in rendered)


def _variants(
  known: ChatFormat, rendered: tuple[_Probe, str], tokens: Mapping[str, str | None]
) -> Iterator[ChatFormat]:
  """Yields a format with the beginnings, ends and system messages it could have."""
  for bos in dict.fromkeys((None, tokens.get("bos_token"))):
    for final in dict.fromkeys((None, tokens.get("eos_token"))):
      for trim in (False, True):
        chat = dataclasses.replace(known, bos=bos, final=final, trim=trim)
        yield chat
        default = _default_system(chat, *rendered)
        if default is not None:
          yield dataclasses.replace(chat, default_system=default)


def _default_system(chat: ChatFormat, probe: _Probe, text: str) -> str | None:
  """Finds the system message that a template adds, by what stands round it."""
  marker = "\0"
  framed = dataclasses.replace(chat, default_system=marker)
  before, _, after = framed.render(probe.messages, prompt=probe.prompt).partition(
    marker
  )
  fits = text.startswith(before) and text.endswith(after)
  if not fits or len(text) < len(before) + len(after):
    return None
  return text[len(before) : len(text) - len(after)]
