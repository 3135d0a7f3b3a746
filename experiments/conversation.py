"""A conversation with a model as token ids: turns, answers that stream, retries.

Answers are kept as the ids that were sampled, never as text that is tokenized again,
so that what the model has read stays what it has written. Refuses to know terminals.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from phi4_jax.common.errors import DataError
from phi4_jax.data.chat import encode_follow_up, encode_prompt
from phi4_jax.data.detokenize import StreamDecoder
from phi4_jax.data.documents import Message
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.sampling.stream import StreamedToken

# Why an answer ended: the model ended it, --max_tokens, the model's context is full,
# somebody stopped it.
End = Literal["stop", "max_tokens", "context", "interrupted"]


class TokenStream(Protocol):
  """What a conversation needs of `StreamSampler`."""

  @property
  def max_length(self) -> int: ...

  def stream(
    self,
    prefix: Sequence[int],
    key_path: Sequence[int],
    *,
    max_new: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
  ) -> Iterator[StreamedToken]: ...


class ContextFullError(DataError):
  """The conversation leaves no room for an answer."""


@dataclasses.dataclass(kw_only=True)
class Turn:
  """A question and its answer.

  Attributes:
    question: what was said.
    prompt_ids: everything before the answer, from the beginning of the conversation.
    answer_ids: what was sampled, a token that stopped it included.
    text: the answer without control tokens.
    end: why the answer ended; None while it goes on.
    attempt: how often it was tried again.
  """

  question: str
  prompt_ids: list[int]
  answer_ids: list[int] = dataclasses.field(default_factory=list)
  text: str = ""
  end: End | None = None
  attempt: int = 0


class Conversation:
  """Turns in a row. The draws of turn t, attempt a have the key path (t, a)."""

  def __init__(
    self,
    stream: TokenStream,
    vocabulary: Vocabulary,
    *,
    system: str | None = None,
    max_tokens: int,
  ):
    """Args:
    stream: where answers come from.
    vocabulary: the model's; its chat format writes the turns.
    system: the system message; None leaves it to the chat format.
    max_tokens: most tokens of one answer.
    """
    self._stream = stream
    self._vocabulary = vocabulary
    self._max_tokens = max_tokens
    self.system = system
    self.turns: list[Turn] = []

  @property
  def num_tokens(self) -> int:
    """Tokens of the conversation so far."""
    if not self.turns:
      return 0
    return len(self.turns[-1].prompt_ids) + len(self.turns[-1].answer_ids)

  @property
  def max_length(self) -> int:
    """Most tokens that the model takes."""
    return self._stream.max_length

  def messages(self) -> list[Message]:
    """Returns the conversation as a chat document has it."""
    messages = self._opening()
    for turn in self.turns:
      messages.append({"role": "user", "content": turn.question})
      messages.append({"role": "assistant", "content": turn.text})
    return messages

  def reset(self) -> None:
    """Forgets all turns; the system message stays."""
    self.turns = []

  def ask(
    self, question: str, should_stop: Callable[[], bool] = lambda: False
  ) -> Iterator[str]:
    """Yields pieces of the answer; one that is stopped before a token changes nothing.

    Raises:
      ContextFullError: if there is no room for an answer; the turns stay as they are.
      DataError: if the question cannot be encoded.
    """
    turn = Turn(question=question, prompt_ids=self._prompt_ids(question))
    self._check_room(turn)
    yield from self._answer(self.turns, turn, should_stop)

  def retry(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """Yields another answer to the last question, which takes the place of the last.

    Raises:
      DataError: if there is no question yet.
    """
    if not self.turns:
      raise DataError("There is nothing to try again: nothing was asked yet.")
    *before, last = self.turns
    turn = Turn(
      question=last.question, prompt_ids=last.prompt_ids, attempt=last.attempt + 1
    )
    yield from self._answer(before, turn, should_stop)

  def _answer(
    self, before: list[Turn], turn: Turn, should_stop: Callable[[], bool]
  ) -> Iterator[str]:
    """Answers `turn`, which comes after `before` as soon as there is a token."""
    decoder = StreamDecoder(self._vocabulary)
    tokens = self._stream.stream(
      turn.prompt_ids,
      (len(before), turn.attempt),
      max_new=self._max_tokens,
      should_stop=should_stop,
    )
    try:
      for token in tokens:
        if not turn.answer_ids:
          self.turns = [*before, turn]
        turn.answer_ids.append(token.token_id)
        if token.finish == "stop":
          turn.end = "stop"
        elif token.finish == "length":
          is_full = self.num_tokens >= self.max_length
          turn.end = "context" if is_full else "max_tokens"
        if token.finish != "stop":
          piece = decoder.push(token.token_id)
          turn.text += piece
          if piece:
            yield piece
      rest = decoder.finish()
      turn.text += rest
      if rest:
        yield rest
    finally:
      turn.end = turn.end or "interrupted"

  def _opening(self) -> list[Message]:
    if self.system is None:
      return []
    return [{"role": "system", "content": self.system}]

  def _prompt_ids(self, question: str) -> list[int]:
    said: list[Message] = [{"role": "user", "content": question}]
    if not self.turns:
      return encode_prompt(self._opening() + said, self._vocabulary)
    last = self.turns[-1]
    answer = list(last.answer_ids)
    chat = self._vocabulary.chat
    assert chat is not None, "encode_prompt has refused a vocabulary without"
    ended = answer[-1] == self._vocabulary.specials[chat.turn_end]
    if last.end == "stop" and not ended:
      answer.pop()  # the end of a text: the next turn wants the end of a turn instead
    follow_up = encode_follow_up(said, self._vocabulary, ended=ended)
    return last.prompt_ids + answer + follow_up

  def _check_room(self, turn: Turn) -> None:
    if len(turn.prompt_ids) < self.max_length:
      return
    before = f" after {self.num_tokens} of the conversation" if self.turns else ""
    raise ContextFullError(
      f"The context is full: the model reads {self.max_length} tokens, and with this "
      f"question there are {len(turn.prompt_ids)}{before}. Nothing was cut, and "
      "the question is not kept."
    )
