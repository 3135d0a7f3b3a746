"""The items of a benchmark that is named on a command line, wherever its files lie."""

from collections.abc import Iterator
from pathlib import Path

from experiments.known_data import require_files, standard_places
from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.decontaminate_index import BenchmarkItem
from phi4_jax.curation.decontaminate_items import read_items
from phi4_jax.data.known_files import benchmark_texts
from phi4_jax.data.known_tasks import KNOWN_TASKS


def open_benchmark(
  given: str, benchmark_dir: str | None, *, with_answers: bool
) -> tuple[str, Iterator[BenchmarkItem]]:
  """Returns the name of a benchmark, and its items.

  In this order:
    1. NAME=FILE, a JSON-lines file with the usual fields
    2. NAME=PATH, another format of a published set of that name
    3. NAME, for NAME.jsonl in `benchmark_dir`
    4. NAME, for a published set that is found in `benchmark_dir`, in `data` or in the
       folders of the Hugging Face and TFDS libraries

  Raises:
    ConfigError: if nothing of that name is found; says what would be.
  """
  name, equals, path = given.partition("=")
  if equals and path.endswith(".jsonl"):
    return name, read_items(name, path, with_answers=with_answers)
  file = Path(benchmark_dir or ".") / f"{name}.jsonl"
  if not equals and benchmark_dir is not None and file.is_file():
    return name, read_items(name, str(file), with_answers=with_answers)
  if name not in KNOWN_TASKS:
    raise ConfigError(_explain(given, name, benchmark_dir))
  if not equals:
    places = standard_places(() if benchmark_dir is None else (benchmark_dir, "data"))
    known = KNOWN_TASKS[name]
    path = require_files(known, known.scored, places)
  texts = benchmark_texts(name, path, with_answers=with_answers)
  return name, (BenchmarkItem(dataset=name, id=item, text=t) for item, t in texts)


def _explain(given: str, name: str, benchmark_dir: str | None) -> str:
  asked = f"DecontaminateConfig.benchmarks: {given!r}"
  published = f"Published sets that are known by name: {', '.join(KNOWN_TASKS)}."
  if "=" in given:
    return (
      f"{asked}: only JSON lines (.jsonl) can be read of a set whose layout is not "
      f"known. {published}"
    )
  if benchmark_dir is None:
    return (
      f"{asked} names no file. Write {name}=FILE, or give a --benchmark_dir. "
      f"{published}"
    )
  folder = Path(benchmark_dir)
  known = ", ".join(sorted(path.stem for path in folder.glob("*.jsonl")))
  return (
    f"{asked}: there is no {folder / f'{name}.jsonl'}. In that folder are: "
    f"{known or 'none'}. {published}"
  )
