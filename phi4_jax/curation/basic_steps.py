"""Steps that look at a document's id alone: a sample, and ids that occur twice."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.steps import Drop, Judge, Keep, Verdict, make_recipe
from phi4_jax.data.documents import Document


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleStep:
  """Keeps a share of the documents: those whose hashed id is small.

  The same documents whatever else is in the corpus; with the same seed a smaller
  sample is part of a larger one. Documents with the same id are kept or dropped
  together, and the share is met on average, not exactly.

  Drops: not_sampled.

  Attributes:
    fraction: the share to keep, above 0 and at most 1.
    seed: another one takes another sample.
  """

  fraction: float
  seed: int = 0

  def __post_init__(self):
    if not 0 < self.fraction <= 1:
      raise ConfigError(
        f"SampleStep.fraction ({self.fraction}) must be above 0 and at most 1."
      )

  def make_judge(self) -> Judge:
    limit = int(self.fraction * 2**64)
    salt = str(self.seed).encode("ascii")

    def judge(document: Document) -> Verdict:
      digest = hashlib.blake2b(document.id.encode("utf-8"), digest_size=8, key=salt)
      if int.from_bytes(digest.digest(), "big") < limit:
        return Keep(document)
      return Drop("not_sampled")

    return judge

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropDuplicateIds:
  """Drops a document whose id an earlier one has, whatever its text.

  Holds 16 bytes of each id in memory (about 100 bytes with Python's own), so 100
  million documents take 10 GB.

  Drops: duplicate_id.
  """

  def make_key(self) -> Callable[[Document], bytes]:
    def key(document: Document) -> bytes:
      return hashlib.blake2b(document.id.encode("utf-8"), digest_size=16).digest()

    return key

  def judge_keys(self, keys: Iterable[bytes]) -> Iterator[Drop | None]:
    first: dict[bytes, int] = {}
    for place, key in enumerate(keys):
      earlier = first.setdefault(key, place)
      yield None if earlier == place else Drop("duplicate_id", f"same as #{earlier}")

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)
