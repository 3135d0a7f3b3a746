"""Chat formats: which tokens and texts stand round the messages of a conversation.

A format is data. A conversation becomes a row of pieces; a piece is a control token
(by name) or text, and counts in the loss or not. Refuses to know token ids
(`chat.py`) and templates (`chat_templates.py` finds the format of a template).

Source: arXiv:2412.08905 §4 (phi4). The others are those of the templates that
Phi-3, Phi-4-mini, SmolLM2 (chatml) and Llama 3 are published with.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from phi4_jax.common.errors import DataError
from phi4_jax.data.documents import Message


class Piece(NamedTuple):
  """A control token by name, or a text; `counts` says whether it is learned."""

  text: str
  control: bool
  counts: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFormat:
  """How messages are written.

  Attributes:
    name: what people call it.
    header: what opens a turn, part by part; `{role}` is the role. A part in angle
      brackets is a control token.
    turn_end: the control token that ends a turn: where an answer stops.
    after_end: text behind it.
    bos: control token before the first turn.
    final: control token behind a whole conversation; not behind a prompt.
    default_system: a system message for conversations that have none.
    trim: white space round contents is dropped.
    rstrip: the control tokens that swallow the white space behind them.
  """

  name: str
  header: tuple[str, ...]
  turn_end: str
  after_end: str = ""
  bos: str | None = None
  final: str | None = None
  default_system: str | None = None
  trim: bool = False
  rstrip: tuple[str, ...] = ()

  def control_names(self, roles: Sequence[str] = ("user", "assistant")) -> set[str]:
    """Returns the control tokens that a vocabulary must have."""
    parts = {part.format(role=role) for part in self.header for role in roles}
    names = {part for part in parts if _is_control(part)} | {self.turn_end}
    return names | {name for name in (self.bos, self.final) if name}

  def write(
    self, messages: Sequence[Message], *, prompt: bool, opening: bool = True
  ) -> Iterator[Piece]:
    """Yields the pieces of a conversation.

    Args:
      messages: the turns.
      prompt: end in the header of an answer to come.
      opening: begin with what stands before a first message. Without it the
        messages continue a conversation.
    """
    if opening:
      if self.bos:
        yield Piece(self.bos, True, False)
      if self.default_system is not None and messages[0]["role"] != "system":
        yield from self._turn("system", self.default_system)
    for message in messages:
      content = message["content"]
      yield from self._turn(message["role"], content.strip() if self.trim else content)
    if prompt:
      yield from self._header("assistant")
    elif self.final:
      yield Piece(self.final, True, False)

  def render(self, messages: Sequence[Message], *, prompt: bool) -> str:
    """Writes a conversation as text, as chat templates do."""
    return "".join(piece.text for piece in self.write(messages, prompt=prompt))

  def _header(self, role: str) -> Iterator[Piece]:
    for part in self.header:
      text = part.format(role=role)
      yield Piece(text, _is_control(text), False)

  def _turn(self, role: str, content: str) -> Iterator[Piece]:
    counts = role == "assistant"
    yield from self._header(role)
    yield Piece(content, False, counts)
    yield Piece(self.turn_end, True, counts)
    if self.after_end:
      yield Piece(self.after_end, False, False)

  def to_json(self) -> dict[str, Any]:
    """Returns what `format_from_json` reads."""
    return {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in dataclasses.asdict(self).items()
    }


def _is_control(part: str) -> bool:
  return part.startswith("<") and part.endswith(">")


PHI4 = ChatFormat(
  name="phi4", header=("<|im_start|>", "{role}", "<|im_sep|>"), turn_end="<|im_end|>"
)
CHATML = ChatFormat(
  name="chatml",
  header=("<|im_start|>", "{role}", "\n"),
  turn_end="<|im_end|>",
  after_end="\n",
)
PHI3 = ChatFormat(
  name="phi3", header=("<|{role}|>", "\n"), turn_end="<|end|>", after_end="\n"
)
PHI4_MINI = ChatFormat(name="phi4-mini", header=("<|{role}|>",), turn_end="<|end|>")
LLAMA3 = ChatFormat(
  name="llama3",
  header=("<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n"),
  turn_end="<|eot_id|>",
  bos="<|begin_of_text|>",
  trim=True,
)
CHAT_FORMATS = {chat.name: chat for chat in (PHI4, CHATML, PHI3, PHI4_MINI, LLAMA3)}


def get_chat_format(name: str) -> ChatFormat:
  """Returns a known format.

  Raises:
    DataError: listing the known ones.
  """
  if name not in CHAT_FORMATS:
    raise DataError(
      f"There is no chat format {name!r}. Known: {', '.join(CHAT_FORMATS)}."
    )
  return CHAT_FORMATS[name]


def format_from_json(record: Mapping[str, Any]) -> ChatFormat:
  """Reads what `ChatFormat.to_json` gave.

  Raises:
    DataError: if a field is missing or unknown.
  """
  values: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in record.items()
  }
  try:
    return ChatFormat(**values)
  except TypeError as error:
    raise DataError(f"A vocabulary.json has a broken chat format: {error}.") from error
