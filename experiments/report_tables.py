"""Results as tables: what a chain or a sweep prints and writes as Markdown."""

from collections.abc import Sequence
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.text import format_table
from phi4_jax.eval import statistics


def stage_headline(result: dict[str, Any]) -> str:
  """The figures of a stage's result that fit on one line."""
  metrics = result.get("metrics", {})
  if "accuracy" in metrics:
    low, high = metrics["interval"]
    return f"accuracy {metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
  if "arms" in metrics:
    arms = metrics["arms"].items()
    return ", ".join(f"{name} {arm['accuracy']:.3f}" for name, arm in arms)
  parts = [
    f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
    for name, value in metrics.items()
    if isinstance(value, int | float)
  ]
  return ", ".join(parts[:4])


def pipeline_table(results: dict[str, dict[str, Any]]) -> str:
  """One row a stage: verb, result, minutes, memory."""
  rows = [
    [
      name,
      result["verb"],
      stage_headline(result),
      round(result["minutes"], 2),
      round(result["peak_memory_gb"], 2),
    ]
    for name, result in results.items()
  ]
  return format_table(["stage", "verb", "result", "minutes", "peak GB"], rows)


def pipeline_summary(config: Any, results: dict[str, dict[str, Any]]) -> str:
  """The chain as a Markdown page: table, then the command behind each row."""
  commands = [
    f"phi4 {stage.verb} --gin_file=stages/{name}.gin --workdir={name}"
    for name, stage in config.stages.items()
  ]
  return (
    "# Results of the chain\n\n"
    + pipeline_table(results)
    + "\n\n![loss](curves.png)\n\nEach stage by itself, from this folder:\n\n```\n"
    + "\n".join(commands)
    + "\n```\n"
  )


def lookup(result: dict[str, Any], path: str) -> float:
  """Returns the number at a dotted path of a result.

  Raises:
    ConfigError: if there is none; lists what there is.
  """
  numbers = dict(_numbers(result))
  if path not in numbers:
    raise ConfigError(
      f"SweepConfig.metrics: a run's result has no number {path!r}; it has "
      f"{', '.join(numbers)}."
    )
  return numbers[path]


def _numbers(value: Any, path: str = ""):
  if isinstance(value, dict):
    for key, item in value.items():
      yield from _numbers(item, f"{path}.{key}" if path else key)
  elif isinstance(value, int | float) and not isinstance(value, bool):
    yield path, float(value)


def summarise_points(
  points: Sequence[tuple[tuple[tuple[str, Any], ...], int, dict[str, Any]]],
  *,
  metrics: Sequence[str],
  goal: str,
) -> list[dict[str, Any]]:
  """Groups (cell, seed, result) by cell; best cell first by the first metric.

  Each row has `settings`, `seeds`, and for each metric its values by seed, mean,
  and 95% interval of the mean over seeds (Student's t; None for one seed).
  """
  cells: dict[tuple, list[tuple[int, dict[str, Any]]]] = {}
  for cell, seed, result in points:
    cells.setdefault(cell, []).append((seed, result))
  rows = []
  for cell, members in cells.items():
    summary = {}
    for metric in metrics:
      values = [lookup(result, metric) for _, result in members]
      found = statistics.mean_interval(values) if len(values) > 1 else None
      summary[metric] = {
        "values": values,
        "mean": sum(values) / len(values),
        "interval": [found.low, found.high] if found else None,
      }
    rows.append(
      {
        "settings": dict(cell),
        "seeds": [seed for seed, _ in members],
        "metrics": summary,
      }
    )
  sign = 1 if goal == "min" else -1
  return sorted(rows, key=lambda row: sign * row["metrics"][metrics[0]]["mean"])


def sweep_table(rows: Sequence[dict[str, Any]], *, metrics: Sequence[str]) -> str:
  """One row a grid cell, best first."""
  names = list(rows[0]["settings"])
  header = [*names, "seeds", *(f"{metric} (mean, 95%)" for metric in metrics)]
  body = []
  for row in rows:
    figures = []
    for metric in metrics:
      entry = row["metrics"][metric]
      text = f"{entry['mean']:.4f}"
      if entry["interval"]:
        text += " [{:.4f}, {:.4f}]".format(*entry["interval"])
      figures.append(text)
    body.append([*(row["settings"][n] for n in names), len(row["seeds"]), *figures])
  return format_table(header, body)
