"""Oracles that judge decoded texts by a rule (oracle_rules.py).

Where an oracle that runs model-written code belongs: a rule of its own beside those of
`oracle_rules.py` (a config class, `version`, `refuse`, `judge`), whose `judge` hands
the program to a sandbox and the tests' expected values to nobody. `PythonRule` is not
that place: its processes keep hangs and crashes away from the search, and may do
whatever their user may.
"""

import logging
import threading
from collections.abc import Sequence

from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.eval.exchange import decode_ids
from phi4_jax.pts.oracle import Finish, Question
from phi4_jax.pts.oracle_rules import Rule

_log = logging.getLogger(__name__)


class RuleOracle:
  """A rule's verdicts on decoded responses; implements the Oracle protocol.

  Attributes:
    rule: it.
    workers: judgements that make sense at once: processes of the rule, else 1.
    printed: what a rule printed while it judged, by the question's id; the beginning
      of the first time. A rule that prints is heard, and its verdict stands.
  """

  def __init__(self, rule: Rule, vocabulary: Vocabulary, *, ends: Sequence[str] = ()):
    """
    Args:
      rule: judges texts.
      vocabulary: decodes responses.
      ends: a response is judged up to the first of these, for base models that go on
        with a question of their own.
    """
    self.rule = rule
    self.workers: int = getattr(rule, "workers", 1)
    self._vocabulary = vocabulary
    self._ends = tuple(ends)
    self._lock = threading.Lock()
    self.printed: dict[str, str] = {}
    self.fingerprint = " ".join(
      [rule.version, vocabulary.fingerprint, *(repr(end) for end in self._ends)]
    )

  def judge(self, question: Question, token_ids: Sequence[int], finish: Finish) -> bool:
    """Whether a response is right.

    Raises:
      OracleFailure: if there is no verdict, with the reason.
    """
    response = self.response_text(token_ids, finish)
    verdict, printed = self.rule.judge(question.prompt, response, question.reference)
    if printed:
      with self._lock:
        if not self.printed:
          _log.warning(
            "The oracle prints while it judges (question %s): %r. It is kept out of "
            "the search; verdicts are what it returns.",
            question.id,
            printed,
          )
        self.printed.setdefault(question.id, printed)
    return verdict

  def refuse(self, reference: str) -> str | None:
    """Says why nothing can be judged against a reference; None if it can."""
    return self.rule.refuse(reference)

  def response_text(self, token_ids: Sequence[int], finish: Finish) -> str:
    """The response as judged: without special tokens, and without what follows an end.

    A stop token is decoded, too: it may hold an end and text before it.
    """
    text = decode_ids(token_ids, self._vocabulary)
    cuts = [text.find(end) for end in self._ends if end in text]
    return text[: min(cuts)] if cuts else text

  def token_text(self, token_id: int) -> str:
    """One token for a person to read."""
    if token_id >= self._vocabulary.size:
      return f"<id {token_id}>"
    return self._vocabulary.token_text(token_id)

  def close(self) -> None:
    """Ends the rule's processes, if it has any."""
    self.rule.close()


def find_stop_ids(vocabulary: Vocabulary, ends: Sequence[str]) -> tuple[int, ...]:
  """Returns the tokens at which sampling may stop: whatever they do to the verdict.

  Those of the vocabulary, and every token that holds a whole one of `ends`: what is
  drawn behind it would not be read. Ends that no token holds cost tokens, no more.
  """
  wanted = [end.encode() for end in ends]
  found = dict.fromkeys(vocabulary.stop_ids)
  for token_id in range(vocabulary.size) if wanted else ():
    data = vocabulary.token_bytes(token_id)
    if any(end in data for end in wanted):
      found[token_id] = None
  return tuple(found)
