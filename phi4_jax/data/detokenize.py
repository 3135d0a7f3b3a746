"""Text from tokens one at a time, never half a character.

A token may end within a character. What has arrived of it is held back until the rest
is there, or until it is certain that it never comes (then it is shown as U+FFFD, as
`decode` does).
"""

from phi4_jax.data.vocabularies import Vocabulary

_REPLACEMENT = "\ufffd"


class StreamDecoder:
  """Turns the ids of one answer into pieces of its text.

  The pieces together are `vocabulary.decode` of all ids. An id that the vocabulary
  lacks (a model's embedding may be larger) becomes U+FFFD.

    decoder = StreamDecoder(vocabulary)
    for token_id in answer:
      print(decoder.push(token_id), end="")
    print(decoder.finish())
  """

  def __init__(self, vocabulary: Vocabulary):
    self._vocabulary = vocabulary
    self._restart()

  def _restart(self) -> None:
    # The ids that were shown last. What follows is decoded behind them, because some
    # vocabularies treat the beginning of a text in another way.
    self._shown: list[int] = []
    self._held: list[int] = []
    self._tail = b""

  def push(self, token_id: int) -> str:
    """Takes the next id; returns what can be shown now, perhaps nothing.

    Raises:
      ValueError: if the id is negative.
    """
    if token_id >= self._vocabulary.size:
      text = self.finish()
      return text + _REPLACEMENT
    self._tail = _open_character(self._tail + self._vocabulary.token_bytes(token_id))
    self._held.append(token_id)
    return "" if self._tail else self._show()

  def finish(self) -> str:
    """Returns what is left at the end of the answer; the next id begins another."""
    text = self._show() if self._held else ""
    self._restart()
    return text

  def _show(self) -> str:
    before = self._vocabulary.decode(self._shown) if self._shown else ""
    text = self._vocabulary.decode(self._shown + self._held)[len(before) :]
    if any(self._vocabulary.token_bytes(token_id) for token_id in self._held):
      self._shown = self._held
    self._held = []
    return text


def _open_character(data: bytes) -> bytes:
  """Returns the end of `data` that may be the beginning of a character."""
  for length in range(1, min(3, len(data)) + 1):
    tail = data[-length:]
    lead = tail[0]
    if lead >= 0xC0:
      try:
        tail.decode("utf-8")
      except UnicodeDecodeError as error:
        # Bytes that can go on to a character fail at their end, others before it.
        return tail if error.reason == "unexpected end of data" else b""
      return b""
    if lead < 0x80:
      return b""
  return b""
