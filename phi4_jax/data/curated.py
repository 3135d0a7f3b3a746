"""Documents that `phi4 curate` has kept.

Knows the files of a curated folder (curation/pipeline.py writes them); refuses to know
what they were curated by.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phi4_jax.common.compression import is_damage
from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_json
from phi4_jax.data.documents import Document, document_from_json
from phi4_jax.data.files import UnreachableError, open_file
from phi4_jax.data.source_files import OnDrop, SourceConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CuratedSource(SourceConfig):
  """The kept documents of a complete run of curation, in the order of its corpus.

  What is read is held against the digests in the run's report, so that a file which
  was cut, changed or exchanged is not taken for the run's own.

  Attributes:
    path: the run's folder.
    shard: the only shard to read; None reads all.
  """

  path: str
  shard: str | None = None

  def documents(self, on_drop: OnDrop | None = None) -> Iterator[Document]:
    """Yields the documents.

    Raises:
      DataError: if the run is not complete, or a file is not as the run left it.
    """
    del on_drop  # nothing is left out
    for entry in self._entries():
      yield from _read(Path(self.path) / entry["kept"]["file"], entry["kept"]["sha256"])

  def shards(self) -> tuple["CuratedSource", ...]:
    """Returns a source for each file."""
    return tuple(
      dataclasses.replace(self, shard=entry["name"]) for entry in self._entries()
    )

  def recipe(self) -> dict[str, Any]:
    kept = [entry["kept"]["sha256"] for entry in self._entries()]
    return {"source": "CuratedSource", "kept": kept}

  def _entries(self) -> list[dict[str, Any]]:
    file = Path(self.path) / "report.json"
    if not file.exists():
      raise DataError(
        f"{self.path} holds no complete run of curation (it has no report.json). Run "
        "phi4 curate with it as --workdir first."
      )
    entries = read_json(file)["shards"]
    if self.shard is None:
      return entries
    found = [entry for entry in entries if entry["name"] == self.shard]
    if not found:
      names = ", ".join(entry["name"] for entry in entries[:5])
      raise DataError(
        f"{self.path} has no shard {self.shard!r}. It has {len(entries)}: {names}"
        f"{' and more' if len(entries) > 5 else ''}."
      )
    return found


def _read(path: Path, sha256: str) -> Iterator[Document]:
  digest = hashlib.sha256()
  row = 0
  # The run itself is complete: in its folder, the command would do nothing.
  remedy = "Run phi4 curate again in a new folder."
  try:
    with open_file(str(path)) as lines:
      for line in lines:
        row += 1
        digest.update(line)
        yield document_from_json(line)
  except UnreachableError:
    raise
  except Exception as error:  # of JSON, or of a row that is no document
    why = f"cannot be read in row {row}: {error}"
    if is_damage(error):
      why = f"is damaged after row {row}: {error.__cause__}"
    raise DataError(f"{path} {why.rstrip('.')}. {remedy}") from error
  if digest.hexdigest() != sha256:
    raise DataError(
      f"{path} is not as its run left it: the digest of its {row} rows is another one "
      f"than in report.json. {remedy}"
    )
