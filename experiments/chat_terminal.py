"""The conversation on a terminal: a prompt, commands, pieces as they come, Ctrl-C.

Refuses to know models: it is given a conversation, a way to read lines and a file to
write to, so that a script can stand in for the person.
"""

import contextlib
import json
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from experiments.config_types import did_you_mean
from experiments.conversation import ContextFullError, Conversation
from phi4_jax.common.errors import DataError
from phi4_jax.common.text import CONTROL

HELP = """/reset        begin a new conversation (the system message stays)
/system TEXT  begin a new conversation with this system message
/retry        another answer to the last question
/save FILE    write the conversation as one line of JSON (a chat document)
/help         this list
/exit         leave; so does Ctrl-D

Ctrl-C stops an answer; what has come of it stays in the conversation. A question that
begins with a slash is written with two.
"""
_COMMANDS = ("/reset", "/system", "/retry", "/save", "/help", "/exit")
_PROMPT = "> "


class StopOnInterrupt:
  """Turns a SIGINT into a flag while an answer comes; a second one interrupts.

  Interrupting at any moment could leave a computation half done.
  """

  def __init__(self):
    self._is_set = False
    self._previous: object = None

  def __call__(self) -> bool:
    return self._is_set

  def __enter__(self) -> "StopOnInterrupt":
    self._previous = signal.signal(signal.SIGINT, self._handle)
    return self

  def __exit__(self, *unused) -> None:
    signal.signal(signal.SIGINT, self._previous)  # type: ignore[arg-type]

  def _handle(self, signum: int, frame: FrameType | None) -> None:
    del signum, frame
    if self._is_set:
      raise KeyboardInterrupt
    self._is_set = True


@contextlib.contextmanager
def hide_typing() -> Iterator[None]:
  """Keeps what is typed while an answer comes out of it; the next prompt shows it."""
  if not sys.stdin.isatty():
    yield
    return
  before = termios.tcgetattr(sys.stdin)
  quiet = list(before)
  quiet[3] &= ~termios.ECHO
  termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
  try:
    yield
  finally:
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class ChatTerminal:
  """Reads questions and commands until the end of the input."""

  def __init__(
    self,
    conversation: Conversation,
    *,
    read_line: Callable[[str], str],
    out: TextIO,
    is_terminal: bool,
  ):
    """Args:
    conversation: to talk with.
    read_line: like `input`: shows a prompt, returns a line, raises EOFError.
    out: where answers go.
    is_terminal: whether `out` is one: speed is shown, control characters are not.
    """
    self._conversation = conversation
    self._read_line = read_line
    self._out = out
    self._is_terminal = is_terminal

  def run(self) -> None:
    """Talks until Ctrl-D or /exit."""
    while True:
      try:
        line = self._read_line(_PROMPT).strip()
      except EOFError:
        self._write("\n")
        return
      except KeyboardInterrupt:
        self._write("\n(Ctrl-D or /exit leaves.)\n")
        continue
      if line == "/exit":
        return
      if line:
        try:
          self._obey(line)
        except DataError as error:
          hint = " /reset begins a new one." * isinstance(error, ContextFullError)
          self._write(f"({error}{hint})\n")

  def _obey(self, line: str) -> None:
    conversation = self._conversation
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line.startswith("/") or line.startswith("//"):
      self._show(lambda stop: conversation.ask(line.removeprefix("/"), stop))
    elif name == "/retry":
      self._show(conversation.retry)
    elif name == "/reset":
      conversation.reset()
      self._write("(A new conversation.)\n")
    elif name == "/system":
      self._set_system(rest)
    elif name == "/save":
      self._save(rest)
    elif name == "/help":
      self._write(HELP)
    else:
      self._write(
        f"({name} is no command.{did_you_mean(name, _COMMANDS)} /help lists them; a "
        "question that begins with a slash is written with two.)\n"
      )

  def _show(self, answer: Callable[[Callable[[], bool]], Iterator[str]]) -> None:
    """Writes an answer piece by piece, and how it ended."""
    conversation = self._conversation
    before = conversation.turns
    start, first = time.perf_counter(), None
    with hide_typing(), StopOnInterrupt() as stop:
      for piece in answer(stop):
        first = first or time.perf_counter()
        # A model may write control characters, which would move the cursor or worse.
        self._write(CONTROL.sub("\ufffd", piece) if self._is_terminal else piece)
    seconds = time.perf_counter() - start
    if conversation.turns is before:
      self._write("\n(Stopped before the answer began; nothing has changed.)\n")
      return
    turn = conversation.turns[-1]
    self._write("\n")
    notes = {
      "interrupted": "(Stopped.)",
      "max_tokens": f"(Cut off after {len(turn.answer_ids)} tokens: --max_tokens.)",
      "context": f"(Cut off: the context of {conversation.max_length} tokens is full. "
      "/reset begins a new conversation.)",
    }
    if turn.end in notes:
      self._write(f"{notes[turn.end]}\n")
    if self._is_terminal and first is not None:
      self._write(self._dim(self._speed(seconds, first - start)) + "\n")

  def _speed(self, seconds: float, wait: float) -> str:
    """Says how fast the answer came; the first token counts apart."""
    conversation = self._conversation
    num_new = len(conversation.turns[-1].answer_ids)
    rate = (num_new - 1) / max(seconds - wait, 1e-9)
    pace = f", then {rate:.1f} tokens/s" if num_new > 1 else ""
    return (
      f"{num_new} tokens, the first after {wait:.1f} s{pace}; "
      f"{conversation.num_tokens} of {conversation.max_length} in use"
    )

  def _set_system(self, text: str) -> None:
    conversation = self._conversation
    if not text:
      shown = conversation.system
      self._write(
        f"(The system message: {shown})\n" if shown else "(No system message is set.)\n"
      )
      return
    conversation.system = text
    conversation.reset()
    self._write("(A new conversation with this system message.)\n")

  def _save(self, name: str) -> None:
    if not name:
      raise DataError("/save needs the name of a file: /save talk.jsonl")
    if not self._conversation.turns:
      raise DataError("There is nothing to save: nothing was asked yet.")
    path = Path(name).expanduser()
    try:
      with path.open("x", encoding="utf-8") as file:  # never over what is there
        record = {"messages": self._conversation.messages()}
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except FileExistsError as error:
      raise DataError(f"{path} exists already; choose another name.") from error
    except OSError as error:
      raise DataError(f"{path} cannot be written: {error.strerror}.") from error
    self._write(f"({len(self._conversation.turns)} turns are in {path}.)\n")

  def _dim(self, text: str) -> str:
    return f"\033[2m{text}\033[0m"

  def _write(self, text: str) -> None:
    self._out.write(text)
    self._out.flush()
