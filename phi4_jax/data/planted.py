"""A small made-up web crawl in which all that is wrong has been planted.

Each document says in its labels what it is, so that a report shows at once which kinds
of junk a pipeline has let through. For demonstrations and tests; nobody learns from it.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.data.documents import Document
from phi4_jax.data.source_files import OnDrop, SourceConfig

_ADJECTIVES = (
  *("narrow", "old", "careful", "bright", "second", "northern", "silent", "early"),
  *("heavy", "small", "broken", "distant", "simple", "warm", "curious", "plain"),
  *("steep", "hollow", "patient", "local", "finite", "common", "sudden", "green"),
)
_NOUNS = (
  *("river", "engine", "cell", "library", "proof", "reader", "compiler", "road"),
  *("planet", "committee", "colony", "valley", "theorem", "gas", "bread", "winter"),
  *("letter", "price", "divisor", "table", "map", "glacier", "harbour", "sentence"),
  *("orchard", "lens", "bridge", "circuit", "market", "violin", "forest", "sample"),
  *("clock", "treaty", "enzyme", "village", "current", "pattern", "window", "seed"),
)
_VERBS = (
  *("carries", "explains", "slows", "changes", "follows", "describes", "measures"),
  *("separates", "resembles", "needs", "counts", "hides", "repairs", "crosses"),
  *("outlives", "supports", "reflects", "divides", "joins", "warms", "delays"),
)
_JOINTS = ("because", "while", "although", "and so", "until", "before", "whenever")
_PREPOSITIONS = ("near", "without", "under", "beyond", "after", "against", "with")
_GERMAN = (
  "Der Fluss ändert im Frühjahr seinen Lauf, und die Brücke muss geschlossen werden.",
  "Niemand weiß genau, warum die Glocke an diesem Morgen nicht geläutet hat.",
  "Die Bäckerei am Markt verkauft seit vielen Jahren dasselbe dunkle Brot.",
  "Wer den Beweis verstehen will, sollte zuerst das kleinere Beispiel rechnen.",
)
_BANNER = "We use cookies to improve your experience. Accept all. Manage preferences."
_LINES = "Click here to buy now! Best price! Free shipping!"

KINDS = (
  *("clean", "too_short", "repeated_lines", "cookie_banner", "mojibake", "binary"),
  *("german", "personal_data", "same_text", "almost_same_text", "same_id"),
)


def _thing(rng: random.Random) -> str:
  article = rng.choice(("the", "the", "each", "this", "another"))
  adjective = f"{rng.choice(_ADJECTIVES)} " if rng.random() < 0.6 else ""
  owner = f" of the {rng.choice(_NOUNS)}" if rng.random() < 0.3 else ""
  return f"{article} {adjective}{rng.choice(_NOUNS)}{owner}"


def _clause(rng: random.Random) -> str:
  clause = f"{_thing(rng)} {rng.choice(_VERBS)} {_thing(rng)}"
  if rng.random() < 0.5:
    clause += f" {rng.choice(_PREPOSITIONS)} {_thing(rng)}"
  return clause


def _sentence(rng: random.Random) -> str:
  sentence = _clause(rng)
  if rng.random() < 0.4:
    sentence += f" {rng.choice(_JOINTS)} {_clause(rng)}"
  return f"{sentence[0].upper()}{sentence[1:]}."


def _prose(rng: random.Random) -> str:
  return "\n\n".join(
    " ".join(_sentence(rng) for _ in range(rng.randint(3, 7)))
    for _ in range(rng.randint(2, 5))
  )


def _mojibake(rng: random.Random) -> str:
  # What UTF-8 becomes when it is read as if it were Latin-1, twice.
  text = "\n\n".join(rng.choice(_GERMAN) for _ in range(8))
  for _ in range(2):
    text = text.encode("utf-8").decode("latin-1")
  return text


def _personal(rng: random.Random) -> str:
  name = f"{rng.choice('abcdefgh')}.{rng.choice(('miller', 'garcia', 'sato'))}"
  number = f"555-01{rng.randint(0, 99):02d}"
  return f"{_prose(rng)}\n\nWrite to {name}@example.org or call (202) {number}."


_MAKERS: dict[str, Callable[[random.Random], str]] = {
  "clean": _prose,
  "too_short": lambda rng: _sentence(rng)[: rng.randint(3, 25)],
  "repeated_lines": lambda rng: "\n".join([_LINES] * rng.randint(10, 40)),
  "cookie_banner": lambda rng: f"{_BANNER}\n{_sentence(rng)}\n{_BANNER}",
  "mojibake": _mojibake,
  "binary": lambda rng: rng.randbytes(600).decode("latin-1"),
  "german": lambda rng: "\n\n".join(rng.choice(_GERMAN) for _ in range(8)),
  "personal_data": _personal,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantedSource(SourceConfig):
  """Documents of which a known share is junk of a known kind.

  Attributes:
    num_documents: of all shards together.
    num_shards: parts that can be read at the same time.
    junk: the share of documents that are not "clean" (see `KINDS`), each kind as often.
    seed: another one makes other documents.
    shard: the only one to make; None makes all.
  """

  num_documents: int
  num_shards: int = 1
  junk: float = 0.5
  seed: int = 0
  shard: int | None = None

  def __post_init__(self):
    if self.num_documents < 1 or not 1 <= self.num_shards <= self.num_documents:
      raise ConfigError(
        f"PlantedSource.num_shards ({self.num_shards}) must be from 1 to num_documents "
        f"({self.num_documents})."
      )
    if not 0 <= self.junk <= 1:
      raise ConfigError(f"PlantedSource.junk ({self.junk}) must be from 0 to 1.")
    if self.shard is not None and not 0 <= self.shard < self.num_shards:
      raise ConfigError(
        f"PlantedSource.shard ({self.shard}) must be below num_shards "
        f"({self.num_shards}), or None."
      )

  def shards(self) -> tuple["PlantedSource", ...]:
    """Returns a source for each part."""
    return tuple(
      dataclasses.replace(self, shard=shard) for shard in range(self.num_shards)
    )

  def documents(self, on_drop: OnDrop | None = None) -> Iterator[Document]:
    """Yields the documents; any of them can be made without the others."""
    del on_drop  # nothing is left out
    n, parts = self.num_documents, self.num_shards
    wanted = range(parts) if self.shard is None else [self.shard]
    for part in wanted:
      for index in range(n * part // parts, n * (part + 1) // parts):
        yield self._make(index)

  def _make(self, index: int) -> Document:
    rng = random.Random(self.seed * 1_000_003 + index)
    kind = rng.choice(KINDS[1:]) if rng.random() < self.junk else "clean"
    name = f"planted-{self.seed}:{index}"
    # Copies are of twenty texts; the first of each is one only by its label.
    origin = random.Random(self.seed * 1_000_003 + rng.randrange(20))
    if kind == "same_id":
      name = f"planted-{self.seed}:{rng.randrange(max(1, index))}"
    if kind == "same_text":
      text = _prose(origin)
    elif kind == "almost_same_text":
      text = f"{_prose(origin)} {_sentence(rng)}"
    else:
      text = _MAKERS.get(kind, _prose)(rng)
    return Document(id=name, text=text, source="planted", labels={"planted": kind})

  def recipe(self) -> dict[str, Any]:
    return {"source": "PlantedSource", **dataclasses.asdict(self)}
