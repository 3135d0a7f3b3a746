import pytest

from experiments import report_tables
from experiments.sweep import SweepConfig, make_points
from phi4_jax.common.errors import ConfigError


def _config(**changes):
  settings = {
    "run": "pretrain",
    "gin_file": "x.gin",
    "axes": {"OptimizerConfig.peak_lr": (1e-3, 2e-3), "C.size": (1, 2)},
    "seeds": (0, 1, 2),
    "metrics": ("metrics.loss",),
    "goal": "min",
  }
  return SweepConfig(**(settings | changes))


def test_points_are_the_grid_times_the_seeds():
  points = make_points(_config())
  assert len(points) == 12
  assert points[0].name == "peak_lr=0.001,size=1,seed=0"
  assert points[3].name == "peak_lr=0.002,size=2,seed=0"
  assert points[4].seed == 1
  assert len({point.name for point in points}) == 12


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"axes": {"C.size": ()}}, r"axes\['C.size'\] has no value"),
    ({"seeds": (0, 0)}, "different seeds"),
    ({"metrics": ()}, "metrics is empty"),
    ({"run": "sweep"}, "must be one of"),
  ],
)
def test_bad_sweeps_are_refused(changes, match):
  with pytest.raises(ConfigError, match=match):
    _config(**changes)


def test_axes_that_would_share_folders_are_refused():
  with pytest.raises(ConfigError, match="share a folder"):
    make_points(_config(axes={"C.size": (1, 1, 2)}))


def _result(loss, accuracy):
  return {"metrics": {"loss": loss, "by.kind": {"a": accuracy}}, "done": True}


def test_summary_orders_cells_and_gives_intervals():
  slow, fast = (("lr", 1),), (("lr", 2),)
  points = [
    (slow, 0, _result(2.0, 0.1)),
    (slow, 1, _result(3.0, 0.3)),
    (fast, 0, _result(1.0, 0.5)),
    (fast, 1, _result(1.2, 0.7)),
  ]
  metrics = ("metrics.loss", "metrics.by.kind.a")
  rows = report_tables.summarise_points(points, metrics=metrics, goal="min")
  assert [row["settings"] for row in rows] == [{"lr": 2}, {"lr": 1}]
  assert rows[0]["seeds"] == [0, 1]
  loss = rows[0]["metrics"]["metrics.loss"]
  assert loss["mean"] == pytest.approx(1.1)
  # Student's t with one degree of freedom: 12.706 * sd / sqrt(2).
  half = 12.7062 * 0.1414214 / 2**0.5
  assert loss["interval"] == pytest.approx([1.1 - half, 1.1 + half], rel=1e-4)
  largest = report_tables.summarise_points(points, metrics=metrics, goal="max")
  assert [row["settings"] for row in largest] == [{"lr": 1}, {"lr": 2}]
  table = report_tables.sweep_table(rows, metrics=metrics)
  assert table.splitlines()[2].startswith("|  2 |     2 | 1.1000 [")


def test_unknown_metric_lists_what_there_is():
  with pytest.raises(ConfigError, match=r"no number 'loss'.*metrics\.loss"):
    report_tables.lookup(_result(1.0, 0.5), "loss")
