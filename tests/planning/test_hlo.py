"""The reader of HLO: loops, groups, collectives, kernels, from small texts."""

from pathlib import Path

import pytest

from phi4_jax.planning.hlo import read_hlo
from phi4_jax.planning.hlo_groups import parse_groups
from phi4_jax.planning.hlo_text import count_bytes, parse_module

PROGRAM = (Path(__file__).parent / "program.hlo").read_text("utf-8")


@pytest.fixture(scope="module")
def reading():
  return read_hlo(PROGRAM)


def test_loops_count_as_often_as_they_run(reading):
  # From 2 to below 5: three rounds.
  assert reading.cycles == {"matmul": 3000.0, "elementwise": 300.0, "copies": 30.0}
  assert reading.unknown_loops == ()


def test_kernels_by_name_and_without_their_own_cycles(reading):
  assert reading.kernel_calls == {"phi4_attention_forward": 3}
  assert reading.total_cycles == 3330.0


def test_collectives_and_bytes_on_the_wire(reading):
  by_kind = {c.kind: c for c in reading.collectives}
  gather = by_kind["all-gather"]
  assert (gather.group_size, gather.count) == (4, 3)
  assert gather.logical_bytes == 3 * 64 * 4 * 2
  assert gather.wire_bytes == pytest.approx(3 * 64 * 4 * 2 * 3 / 4)
  # All-reduce and slice in one fusion moves what a reduce-scatter moves.
  scatter = by_kind["reduce-scatter"]
  assert (scatter.group_size, scatter.count) == (4, 1)
  assert scatter.wire_bytes == pytest.approx(128 * 4 * 3 / 4)


def test_the_costliest_operations_come_first(reading):
  first = reading.operations[0]
  assert (first.group, first.count, first.cycles) == ("matmul", 3, 3000.0)
  assert reading.operations[1].op_name == "jit(step)/add"


def test_an_all_reduce_counts_twice():
  text = PROGRAM.replace("calls=%all-reduce-scatter.1", "calls=%summing").replace(
    "%all-reduce-scatter.1 (", "%summing ("
  )
  found = {c.kind: c for c in read_hlo(text).collectives}["all-reduce"]
  assert found.wire_bytes == pytest.approx(2 * 128 * 4 * 3 / 4)


def test_a_collective_whose_groups_cannot_be_read_is_refused():
  text = PROGRAM.replace("replica_groups=[2,4]<=[8]", "replica_groups=@new{}")
  with pytest.raises(ValueError, match="groups of all-gather all-gather.1"):
    read_hlo(text)


def test_what_goes_over_the_network_between_slices_is_counted():
  send = (
    "  %send.1 = (f32[100]{0}, u32[], token[]) send(%param, %token), channel_id=4, "
    "is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="
    '"xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}\n'
  )
  text = PROGRAM.replace("  %two = s32[]", f"{send}  %two = s32[]")
  found = read_hlo(text, num_slices=2)
  (transfer,) = [c for c in found.collectives if c.crosses_slices]
  assert (transfer.kind, transfer.group_size, transfer.is_async) == (
    "all-reduce",
    2,
    True,
  )
  # Between two slices each sends the 400 bytes once.
  assert found.dcn_bytes == pytest.approx(400)


@pytest.mark.parametrize(
  ("line", "size"),
  [
    ("(f32[64], f32[32]) all-reduce-start(%param, %param)", 96 * 4),
    ("((f32[16], f32[8]), (f32[64], f32[32])) all-gather-start(%param)", 96 * 4),
    ("(f32[16], f32[64]) all-gather-start(%param)", 64 * 4),
  ],
)
def test_combined_collectives_count_all_their_arrays(line, size):
  added = f"  %start.1 = {line}, replica_groups={{{{0,1,2,3}}}}\n"
  text = PROGRAM.replace("  %two = s32[]", f"{added}  %two = s32[]")
  (found,) = [c for c in read_hlo(text).collectives if c.is_async]
  assert found.logical_bytes == size


def test_a_loop_that_counts_down_is_not_taken_for_one_that_counts_up():
  found = read_hlo(PROGRAM.replace("direction=LT", "direction=GT"))
  assert found.unknown_loops == ("while.1",)


def test_an_unknown_element_type_is_refused():
  with pytest.raises(ValueError, match="size of f3e1"):
    count_bytes("f3e1[8]")


def test_a_loop_without_a_known_end_counts_once_and_is_named():
  text = PROGRAM.replace(
    "%limit = s32[]{:T(128)} constant(5)", "%limit = s32[]{:T(128)} iota()"
  )
  found = read_hlo(text)
  assert found.unknown_loops == ("while.1",)
  assert found.cycles["matmul"] == 1000.0


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}",
      [[0, 2], [1, 3]],
    ),
    ("replica_groups=mesh['a'=4], device_ids=(3,1,2,0) {'a'}", [[3, 1, 2, 0]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ("replica_groups=mesh['a'=8] {'a':(1)2}", None),
    ("no groups", None),
  ],
)
def test_groups(text, groups):
  assert parse_groups(text) == groups


@pytest.mark.parametrize(
  ("shape", "size"),
  [
    ("bf16[3,4096,40]{2,1,0:T(8,128)(2,1)}", 3 * 4096 * 40 * 2),
    ("(f32[], /*index=1*/s8[7])", 4 + 7),
    ("s4[3]", 2),
    ("token[]", 0),
  ],
)
def test_bytes_of_a_shape(shape, size):
  assert count_bytes(shape) == size


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY computation"):
    parse_module("hello")
