import json
import struct

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from phi4_jax.training.metrics import (
  MetricsWriter,
  Throughput,
  find_peak_flops,
  known_peak_flops,
)


def records(directory):
  return [json.loads(line) for line in (directory / "metrics.jsonl").open()]


def tensorboard_events(directory):
  """Reads the event files: each record is length, checksum, bytes, checksum."""
  for path in sorted(directory.iterdir(), key=lambda p: p.stat().st_mtime_ns):
    data = path.read_bytes()
    at = 0
    while at < len(data):
      (length,) = struct.unpack_from("<Q", data, at)
      yield Event.FromString(data[at + 12 : at + 12 + length])
      at += length + 16


class TestWriter:
  def test_writes_numbers_of_all_kinds(self, tmp_path):
    with MetricsWriter(tmp_path) as writer:
      values = writer.write(
        3, {"a/b": jnp.float32(0.5), "n": jnp.int32(2), "c": 1.25, "d": 7}
      )
    assert values == {"a/b": 0.5, "n": 2, "c": 1.25, "d": 7}
    (record,) = records(tmp_path)
    assert record.pop("time/unix_seconds") > 1e9
    assert record == {"step": 3, **values}

  def test_numbers_that_json_does_not_know(self, tmp_path):
    with MetricsWriter(tmp_path) as writer:
      writer.write(1, {"x": float("nan"), "y": jnp.float32(-jnp.inf)})
    (record,) = records(tmp_path)
    assert record["x"] == "nan" and float(record["y"]) == -float("inf")

  def test_resume_cuts_what_came_after(self, tmp_path):
    with MetricsWriter(tmp_path) as writer:
      for step in range(1, 6):
        writer.write(step, {"x": step})
    with MetricsWriter(tmp_path, resume_step=3) as writer:
      for step in range(4, 7):
        writer.write(step, {"x": 10 * step})
    found = [(r["step"], r["x"]) for r in records(tmp_path)]
    assert found == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]
    # TensorBoard reads the files in order and drops what a restart takes back.
    shown = {}
    for event in tensorboard_events(tmp_path / "tensorboard"):
      if event.session_log.status == event.session_log.START:
        shown = {step: x for step, x in shown.items() if step < event.step}
      for value in event.summary.value:
        shown[event.step] = value.simple_value
    assert shown == {1: 1, 2: 2, 3: 3, 4: 40, 5: 50, 6: 60}

  def test_a_run_that_begins_again_begins_an_empty_log(self, tmp_path):
    for _ in range(2):
      with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"x": 1})
    assert len(records(tmp_path)) == 1


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class TestThroughput:
  def test_rates_leave_out_the_first_step_and_what_is_excluded(self):
    clock = Clock()
    meter = Throughput(flops_per_token=3.0, peak_flops=600.0, clock=clock)
    clock.now += 50  # compiling
    meter.count(100)
    assert meter.read() == {}
    for _ in range(4):
      clock.now += 2
      meter.count(100)
    with meter.excluded():
      clock.now += 1000
    assert meter.read() == {
      "perf/tokens_per_second": 50.0,
      "perf/seconds_per_step": 2.0,
      "perf/mfu": 0.25,
    }
    clock.now += 1
    meter.count(100)
    assert meter.read()["perf/tokens_per_second"] == 100.0  # a new interval

  def test_no_utilisation_without_a_peak(self):
    clock = Clock()
    meter = Throughput(clock=clock)
    meter.count(10)
    clock.now += 2
    meter.count(10)
    assert meter.read() == {"perf/tokens_per_second": 5.0, "perf/seconds_per_step": 2.0}


class TestPeak:
  @pytest.mark.parametrize(
    "kind, peak",
    [
      ("TPU v4", 275e12),
      ("TPU v5 lite", 197e12),
      ("TPU v5", 459e12),
      ("TPU v5p", 459e12),
      ("TPU v6 lite", 918e12),
      ("TPU7x", 1153.5e12),
      ("NVIDIA A100-SXM4-80GB", 312e12),
      ("NVIDIA H100 80GB HBM3", 989e12),
      ("NVIDIA H100 PCIe", 756e12),
      ("NVIDIA H200", 989e12),
    ],
  )
  def test_known_kinds(self, kind, peak):
    assert known_peak_flops(kind) == peak

  def test_unknown_kinds_are_measured_and_say_so(self):
    assert known_peak_flops("cpu") is None
    peak = find_peak_flops(jax.devices()[:2])
    assert peak.flops > 1e8
    assert peak.source.startswith("measured: 2 x cpu")
