"""How plans are shown: one program, a sweep as a table and a picture, two beside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.plan_points import Point
from experiments.plots import new_figure
from phi4_jax.common.text import format_table
from phi4_jax.data.mixture_table import SourceShare, format_mixture

_SECONDS = {
  "matmul": "matrix products",
  "elementwise": "elementwise",
  "copies": "copies",
  "kernels": "kernels",
  "collectives": "collectives",
  "between_slices": "between slices",
}
_PARTS = ("arguments", "temporaries", "results")
_GIB = 2**30


def plan_text(answer: dict[str, Any]) -> str:
  """Returns everything that a person asks of one plan."""
  settings = "  ".join(f"{name} {value}" for name, value in answer["settings"].items())
  head = f"{answer['title']}\n{answer['topology']}\n{settings}"
  if answer.get("xla_options"):
    options = "  ".join(f"{k}={v}" for k, v in answer["xla_options"].items())
    head += f"\ncompiler options: {options}"
  blocks = [head, _memory(answer)]
  if not answer["error"]:
    blocks += [_time(answer), _collectives(answer), _run(answer), _costliest(answer)]
  return "\n\n".join(block for block in [*blocks, _assumptions(answer)] if block)


def _memory(answer: dict[str, Any]) -> str:
  memory = answer["memory"]
  needed, limit = answer["hbm_gib_per_device"], answer["limit_gib"]
  verdict = "fits" if answer["fits"] else "DOES NOT FIT"
  text = f"memory of a device: {_size(needed)} of {limit:.1f} GiB: {verdict}"
  if not answer["error"]:
    parts = [f"{name} {_size(memory[f'{name}_gib'])}" for name in _PARTS]
    held, host = memory["held_gib"], memory["host_gib"]
    parts += [f"held texts {_size(held)}"] if held else []
    parts += [f"on the host {_size(host)}"] if host else []
    text += f" ({', '.join(parts)})"
  else:
    text += f"\nthe compiler says: {answer['error'].splitlines()[0][:300]}"
  rows = [[_size(b["gib"]), b["shapes"][:90]] for b in memory["largest"][:10]]
  if rows:
    header = ["size", "largest buffers (arrays that share them)"]
    text += "\n" + format_table(header, rows)
  if not answer["fits"]:
    fixes = "\n".join(f"  {fix}" for fix in answer["would_fit"])
    text += f"\nwould fit, by estimate:\n{fixes}"
  return text


def _size(gib: float) -> str:
  return f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 1024:.3g} MiB"


def _time(answer: dict[str, Any]) -> str:
  total = answer["step_seconds"]
  rows = [
    [_SECONDS[name], round(seconds * 1e3, 2), f"{seconds / total:.1%}"]
    for name, seconds in answer["seconds"].items()
    if seconds
  ]
  text = (
    f"predicted by XLA's cost model: {total * 1e3:.4g} ms a step, "
    f"{answer['tokens_per_second']:,.0f} tokens/s"
  )
  if answer.get("predicted_mfu") is not None and "floor_seconds" not in answer:
    text += f", MFU {answer['predicted_mfu']:.1%}"
  if "floor_seconds" in answer:
    text += (
      f"; reading weights and cache once takes {answer['floor_seconds'] * 1e3:.3g} ms: "
      f"{answer['compute_to_floor']:.2f} times that without collectives, "
      f"{total / answer['floor_seconds']:.2f} with them"
    )
  text += "\n" + format_table(["time of a step", "ms", "share"], rows)
  if answer["unknown_loops"]:
    text += (
      f"\nloops whose number of rounds is not known count once: "
      f"{', '.join(answer['unknown_loops'])}"
    )
  return text


def _collectives(answer: dict[str, Any]) -> str:
  rows = [
    [
      c["kind"],
      c["group_size"],
      c["count"],
      round(c["logical_bytes"] / _GIB, 3),
      round(c["wire_bytes"] / _GIB, 3),
      "async" if c["is_async"] else "sync",
      "DCN" if c["crosses_slices"] else "ICI",
    ]
    for c in answer["collectives"]
  ]
  header = ["collective", "group", "calls", "GiB", "GiB sent", "", "over"]
  parts = [format_table(header, rows)] if rows else []
  if answer.get("num_slices", 1) > 1 and not any(
    c["crosses_slices"] for c in answer["collectives"]
  ):
    parts.append("warning: nothing was found that goes between the slices")
  if answer["kernel_calls"]:
    calls = ", ".join(f"{n} x {name}" for name, n in answer["kernel_calls"].items())
    parts.append(f"kernel calls: {calls}")
  return "\n".join(parts)


def _run(answer: dict[str, Any]) -> str:
  if "days" not in answer:
    return ""
  text = (
    f"{answer['total_tokens']:.3g} tokens take {answer['days']:,.3g} days, "
    f"{answer['chip_hours']:,.3g} chip-hours (--tokens N for another number)"
  )
  if answer.get("mixture"):
    shares = [SourceShare(**share) for share in answer["mixture"]]
    text += f"\n\nthe mixture, this stage alone:\n{format_mixture(shares)}"
  return text


def _costliest(answer: dict[str, Any]) -> str:
  clock = answer["assumptions"]["clock_hz"]
  rows = [
    [
      float(f"{o['cycles'] / clock * 1e3:.3g}"),
      o["count"],
      o["group"],
      o["op_name"][-70:] or o["name"],
    ]
    for o in answer["operations"][:8]
  ]
  return format_table(["ms", "times", "group", "costliest operations"], rows)


def _assumptions(answer: dict[str, Any]) -> str:
  lines = [
    f"  {name} = {value:.6g}" if isinstance(value, float) else f"  {name}: {value}"
    for name, value in answer["assumptions"].items()
  ]
  versions = ", ".join(f"{name} {text}" for name, text in answer["versions"].items())
  return "\n".join(
    ["assumptions (--assume NAME=VALUE):", *lines, f"compiled by {versions}"]
  )


def sweep_text(points: Sequence[Point], answers: Sequence[dict[str, Any]]) -> str:
  """Returns a table with one row a point, the best of those that fit marked."""
  names = list(points[0].values)
  best = best_index(answers)
  rows = []
  for i, (point, answer) in enumerate(zip(points, answers, strict=True)):
    values = [point.values[name] for name in names]
    rows.append([*values, *_sweep_cells(answer), "<- best" if i == best else ""])
  header = [*names, "GiB", "fits", "step s", "MFU", "tokens/s", "days", ""]
  text = format_table(header, rows)
  refused = [answer["refused"] for answer in answers if "refused" in answer]
  if refused:
    text += "\nrefused:\n" + "\n".join(
      f"  {line[:400]}" for line in dict.fromkeys(refused)
    )
  return text + "\npredicted by XLA's cost model; `phi4 plan` of one point says more"


def _sweep_cells(answer: dict[str, Any]) -> list[str]:
  if "refused" in answer:
    return ["", "refused", "", "", "", ""]
  cells = [f"{answer['hbm_gib_per_device']:.3g}", "yes" if answer["fits"] else "NO"]
  if answer["error"]:
    return [*cells, "", "", "", ""]
  return [
    *cells,
    f"{answer['step_seconds']:.3g}",
    f"{answer['predicted_mfu']:.2%}",
    f"{answer['tokens_per_second']:,.0f}",
    f"{answer['days']:,.3g}",
  ]


def best_index(answers: Sequence[dict[str, Any]]) -> int | None:
  """Returns which point that fits does most tokens a second, None if none fits."""
  rates = [
    answer.get("tokens_per_second", 0.0) if answer.get("fits") else 0.0
    for answer in answers
  ]
  return max(range(len(rates)), key=rates.__getitem__) if any(rates) else None


def plot_sweep(
  points: Sequence[Point], answers: Sequence[dict[str, Any]], path: Path
) -> None:
  """Draws memory against MFU, one labelled dot a point, with the chip's limit."""
  figure, (axis,) = new_figure(7, 4.5)
  for point, answer in zip(points, answers, strict=True):
    if "predicted_mfu" not in answer:
      continue
    x, y = answer["hbm_gib_per_device"], 100 * answer["predicted_mfu"]
    axis.plot([x], [y], "o", color="tab:blue" if answer["fits"] else "tab:red")
    label = ", ".join(map(str, point.values.values()))
    axis.annotate(label, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
  limits = [answer["limit_gib"] for answer in answers if "limit_gib" in answer]
  largest = max((a.get("hbm_gib_per_device", 0.0) for a in answers), default=0.0)
  if limits and largest > limits[0] / 3:
    axis.axvline(limits[0], color="gray", linestyle="--", label="memory of a device")
    axis.legend()
  axis.set_xlabel("memory of a device, GiB")
  axis.set_ylabel("MFU predicted by XLA's cost model, %")
  request = points[0].request
  axis.set_title(
    f"{request.root.removesuffix('Config').lower()} on {request.topology}: "
    f"{', '.join(points[0].values)}"
  )
  figure.savefig(path, dpi=150)


def compare_text(before: dict[str, Any], after: dict[str, Any]) -> str:
  """Returns two plans beside each other, with the change of each figure."""
  figures: dict[str, list[float | None]] = {}

  def add(name: str, i: int, value: Any) -> None:
    figures.setdefault(name, [None, None])[i] = value

  for i, answer in enumerate((before, after)):
    add("memory GiB", i, answer["hbm_gib_per_device"])
    add("step ms", i, _times(1e3, answer.get("step_seconds")))
    add("MFU %", i, _times(100, answer.get("predicted_mfu")))
    add("tokens/s", i, answer.get("tokens_per_second"))
    for name, seconds in answer.get("seconds", {}).items():
      add(f"{_SECONDS[name]} ms", i, 1e3 * seconds)
    for c in answer.get("collectives", []):
      kind = f"{c['kind']} over {c['group_size']}"
      kind += " slices" if c["crosses_slices"] else ""
      kind += " (async)" if c["is_async"] else ""
      add(f"{kind}, GiB sent", i, c["wire_bytes"] / _GIB)
    for name, calls in answer.get("kernel_calls", {}).items():
      add(f"calls of {name}", i, calls)
  rows = [
    [name, *map(_figure_text, pair), _change(*pair)] for name, pair in figures.items()
  ]
  sides = [_flatten({k: a.get(k) for k in _SETTINGS}) for a in (before, after)]
  different = [
    f"{name}: {sides[0].get(name)} -> {sides[1].get(name)}"
    for name in {**sides[0], **sides[1]}
    if sides[0].get(name) != sides[1].get(name)
  ]
  title = "; ".join(different) or "the same settings"
  return f"{title}\n{format_table(['', 'before', 'after', 'change'], rows)}"


# Parts of an answer that say what was planned.
_SETTINGS = ("topology", "settings", "config", "xla_options", "assumptions", "versions")


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
  """Returns the leaves of nested dicts under dotted names."""
  if not isinstance(value, dict):
    return {path: value}
  leaves: dict[str, Any] = {}
  for name, inner in value.items():
    leaves |= _flatten(inner, f"{path}.{name}" if path else str(name))
  return leaves


def _times(factor: float, value: float | None) -> float | None:
  return None if value is None else factor * value


def _figure_text(value: float | None) -> str:
  return "" if value is None else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def _change(before: float | None, after: float | None) -> str:
  if not before or after is None:
    return ""
  return f"{after / before - 1:+.1%}"
