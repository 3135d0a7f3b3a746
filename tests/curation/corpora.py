"""Small corpora and steps for the tests of curation, picklable and from a seed."""

import dataclasses
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from phi4_jax.curation.pipeline_plan import Shard
from phi4_jax.curation.steps import Drop, Judge, Keep, make_recipe
from phi4_jax.data.documents import Document

_WORDS = (
  *("tree", "stone", "river", "cloud", "house"),
  *("seven", "light", "under", "every", "water"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListSource:
  """Documents from a list of texts; ids are NAME:ROW unless given.

  Attributes:
    log: a file to which each reading of the source is noted.
  """

  name: str
  texts: tuple[str, ...]
  ids: tuple[str, ...] | None = None
  labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  log: str | None = None

  def documents(self) -> Iterator[Document]:
    if self.log is not None:
      with open(self.log, "a") as file:
        file.write(f"{self.name}\n")
    for row, text in enumerate(self.texts):
      name = self.ids[row] if self.ids else f"{self.name}:{row}"
      yield Document(id=name, text=text, labels=self.labels)

  def recipe(self) -> dict[str, Any]:
    recipe = dataclasses.asdict(self)
    del recipe["log"]
    return recipe


def make_texts(count: int, seed: int) -> tuple[str, ...]:
  rng = random.Random(seed)
  return tuple(
    " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 30)))
    for _ in range(count)
  )


def make_shard(name: str, texts: Iterable[str], **fields: Any) -> Shard:
  source = ListSource(name=name, texts=tuple(texts), **fields)
  return Shard(name=name, source=source, group=name.partition("-")[0])


def make_corpus(num_shards: int = 2, size: int = 60, **fields: Any) -> list[Shard]:
  """Shards of random words, one of them empty, with some texts in several of them."""
  common = make_texts(5, seed=99)
  shards = [
    make_shard(f"web-{i}", [*make_texts(size + i, seed=i), *common], **fields)
    for i in range(num_shards)
  ]
  return [*shards, make_shard("empty-0", (), **fields)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinWords:
  """Drops short texts."""

  words: int = 3

  def make_judge(self) -> Judge:
    def judge(document):
      count = len((document.text or "").split())
      if count < self.words:
        return Drop("too_short", f"{count} words, {self.words} required")
      return Keep(document)

    return judge

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shout:
  """Changes a text and labels it with its length."""

  word: str = "tree"

  def make_judge(self) -> Judge:
    def judge(document):
      text = (document.text or "").replace(self.word, self.word.upper())
      kept = dataclasses.replace(
        document,
        text=text,
        lineage=(*document.lineage, "step:Shout"),
        labels={
          **document.labels,
          "share_of_trees": text.count(self.word.upper()) / max(1, len(text.split())),
          "length": "long" if len(text) > 90 else "short",
        },
      )
      return Keep(kept)

    return judge

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropSameText:
  """Drops a text that came before."""

  def make_key(self) -> Callable[[Document], bytes]:
    return lambda document: (document.text or "").encode()

  def judge_keys(self, keys: Iterable[bytes]) -> Iterator[Drop | None]:
    seen: dict[bytes, int] = {}
    for place, key in enumerate(keys):
      first = seen.setdefault(key, place)
      yield None if first == place else Drop("same_text", f"as #{first}")

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow:
  """Takes its time, and says when its judge is made."""

  seconds: float
  log: str

  def make_judge(self) -> Judge:
    with open(self.log, "a") as file:
      file.write(f"judge {os.getpid()}\n")

    def judge(document):
      time.sleep(self.seconds)
      return Keep(document)

    return judge

  def recipe(self) -> dict[str, Any]:
    return {"step": "Slow"}


@dataclasses.dataclass(frozen=True)
class Calls:
  """A step that answers what a function returns."""

  function: Callable[[Document], Any]
  name: str = "calls"

  def make_judge(self) -> Judge:
    return self.function

  def recipe(self) -> dict[str, Any]:
    return {"step": "Calls", "name": self.name}


def read_outputs(folder: Path) -> dict[str, bytes]:
  """Returns all files that a pipeline has published but its report."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for name in ("kept", "dropped")
    for path in sorted((folder / name).iterdir())
  }
