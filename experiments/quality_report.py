"""The report on a classifier of texts: figures, calibration, thresholds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.plots import new_figure
from phi4_jax.common.io import write_atomic
from phi4_jax.common.statistics import Interval
from phi4_jax.common.text import format_table
from phi4_jax.curation import quality_metrics

_KEEP_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)


def plot_calibration(
  scores: np.ndarray, labels: np.ndarray, name: str, path: Path
) -> None:
  """Draws observed shares with 95% intervals over scores, and where scores lie."""
  rows = quality_metrics.reliability(scores, labels)
  figure, (left, right) = new_figure(9.0, 3.8, 2)
  xs = [row.predicted for row in rows]
  ys = [row.observed.estimate for row in rows]
  bars = [
    [max(0.0, row.observed.estimate - row.observed.low) for row in rows],
    [max(0.0, row.observed.high - row.observed.estimate) for row in rows],
  ]
  left.plot([0, 1], [0, 1], color="0.6", linewidth=1)
  left.errorbar(xs, ys, yerr=bars, fmt="o", capsize=3, markersize=4)
  left.set(xlabel=f"score: probability of {name!r}", ylabel=f"share that is {name!r}")
  left.set(title="calibration on held-out documents", xlim=(0, 1), ylim=(0, 1))
  left.grid(alpha=0.3)
  edges = np.linspace(0, 1, 41).tolist()
  right.hist([scores[labels], scores[~labels]], edges, label=[name, "others"])
  right.set(xlabel="score", ylabel="documents", title="scores")
  right.legend(frameon=False)
  figure.savefig(path, dpi=120)


def write_quality_report(
  folder: Path,
  figures: Mapping[str, Any],
  scores: np.ndarray,
  labels: np.ndarray,
  *,
  positive: str,
  precision: float,
  amplified: str = "",
) -> str:
  """Writes report.md and returns it."""
  rows = [
    [name, figures["classes"][name], f"{Interval(**area):.4f}"]
    for name, area in figures["roc_auc"].items()
  ]
  accuracy = Interval(**figures["accuracy"])
  lines = [
    f"# Classifier of {', '.join(figures['classes'])}",
    "",
    f"{figures['documents']} held-out documents; intervals are at 95%.",
    "",
    format_table(["class", "documents", "ROC-AUC (DeLong)"], rows),
    "",
    f"Accuracy {accuracy:.4f}.",
  ]
  if "best_roc_auc" in figures:
    best = Interval(**figures["best_roc_auc"])
    lines += ["", f"The best that there can be, by the true probabilities: {best:.4f}."]
  lines += [
    "",
    f"## Calibration of {positive!r}",
    "",
    "![calibration](calibration.png)",
    "",
    format_table(
      ["documents", "mean score", "share", "interval of the share"],
      quality_metrics.format_rows(quality_metrics.reliability(scores, labels)),
    ),
    "",
    f"Calibration error {figures['calibration_error']:.4f}; exactly right scores would "
    f"have {figures['calibration_error_of_chance']:.4f} on so many documents.",
    "",
    "## Thresholds",
    "",
    _threshold_table(scores, labels, precision),
  ]
  if amplified:
    lines += ["", "## Thresholds of topics", "", amplified]
  text = "\n".join(lines) + "\n"
  write_atomic(folder / "report.md", text)
  return text


def _threshold_table(scores: np.ndarray, labels: np.ndarray, precision: float) -> str:
  chosen = {
    f"keep {share:.0%}": quality_metrics.keep_share_threshold(scores, share)
    for share in _KEEP_SHARES
  }
  target = quality_metrics.precision_threshold(scores, labels, precision)
  note = ""
  if target is None:
    note = f"\n\nNo threshold has a precision of {precision:.0%}."
  else:
    chosen[f"precision {precision:.0%}"] = target
  rows = []
  for name, threshold in chosen.items():
    row = quality_metrics.threshold_row(threshold, scores, labels)
    if row is not None:
      rows.append(
        [
          name, quality_metrics.format_threshold(threshold, scores),
          f"{row.keep_share:.1%}", f"{row.precision:.4f}", f"{row.recall:.3f}",
        ]
      )  # fmt: skip
  header = ["chosen for", "threshold", "kept", "precision", "recall"]
  return format_table(header, rows) + note
