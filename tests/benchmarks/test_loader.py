"""The loader's benchmark: its contenders do what they say, at toy sizes."""

import pytest

from benchmarks import loader
from benchmarks.ours import loader as ours

OPTIONS = {
  "row_length": 16,
  "rows": 30,
  "batch_size": 4,
  "steps": 5,
  "memory_steps": 200,
  "far_step": 10**6,
  "seed": 0,
  "quick": True,
}


@pytest.mark.parametrize("task", ["batches", "seek", "memory", "read"])
def test_contenders(tmp_path, task):
  options = {**OPTIONS, "folder": str(tmp_path), "task": task}
  prepared = ours.prepare(options)
  values = prepared.run()
  if task in ("batches", "read"):
    assert values == {"work": 5 * 4 * 16}
  if task == "memory":
    assert values["resident_bytes"] > 0 and "growth_bytes_per_step" in values
  assert prepared.run().keys() == values.keys()


def test_figures_by_name():
  def record(rate, seconds, values):
    summary = {"rate": {"median": rate}, "seconds": {"median": seconds}}
    return {"summary": summary, "rounds": [{"values": values}] * 2}

  result = {
    "cases": {
      "throughput": {"contenders": {"2 reading threads": record(6e6, 1, {})}},
      "seek": {"contenders": {"seek": record(1, 0.5, {})}},
      "memory": {
        "contenders": {"memory": record(1, 1, {"growth_bytes_per_step": 3.0})}
      },
    }
  }
  found = loader.summarize(result)
  assert found["tokens_per_second"] == 6e6 and found["meets_tokens_per_second"]
  assert found["seek_seconds"] == 0.5 and found["meets_seek_seconds"]
  assert found["memory_growth_bytes_per_step"] == 3.0


def test_cases_have_a_ceiling_or_a_reason(tmp_path):
  cases = loader.make_cases(tmp_path, quick=True)
  assert [case.name for case in cases] == ["throughput", "seek", "memory"]
