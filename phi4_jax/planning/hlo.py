"""What a compiled TPU program does: estimated cycles, collectives, kernel calls.

Reads the optimized HLO that libtpu produces, in which the compiler has written its own
estimate of cycles beside each operation. Loops count as often as they run. Knows no
chip and no model: `prediction` turns this into seconds.
"""

import collections
import dataclasses
import functools
import math
import re
from typing import Literal

from phi4_jax.planning.hlo_groups import parse_groups
from phi4_jax.planning.hlo_text import (
  Instruction,
  Module,
  count_bytes,
  parse_module,
)

Group = Literal["matmul", "elementwise", "copies"]
_COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
  "collective-broadcast",
)
_MOVES = frozenset(
  (
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "custom-call"),
    *("bitcast", "copy", "transpose", "reshape", "convert", "broadcast", "pad"),
    *("slice", "dynamic-slice", "dynamic-update-slice", "concatenate"),
  )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """Equal collectives of one program, seen from one device.

  Attributes:
    kind: as XLA names it; "reduce-scatter" also where XLA fuses all-reduce and slice.
    group_size: devices that take part in each.
    count: how often one step runs them.
    logical_bytes: of all of them: the larger of input and result.
    wire_bytes: of all of them: what one device sends, by the ring formula.
    is_async: whether they may overlap with computation.
    crosses_slices: whether it goes over the network; `group_size` is then slices.
  """

  kind: str
  group_size: int
  count: int
  logical_bytes: float
  wire_bytes: float
  is_async: bool
  crosses_slices: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
  """One operation of the program with what it costs in all."""

  name: str
  op_name: str
  group: Group
  shape: str
  count: int
  cycles: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """What one step does on one device.

  Attributes:
    cycles: by group; without kernels and collectives, for which XLA has no estimate.
    collectives: by kind, group size and whether they are asynchronous.
    kernel_calls: custom kernels by name, with how often a step calls them.
    operations: those with estimated cycles, the most expensive first.
    unknown_loops: loops whose number of rounds could not be read; they count once.
  """

  cycles: dict[str, float]
  collectives: tuple[Collective, ...]
  kernel_calls: dict[str, int]
  operations: tuple[Operation, ...]
  unknown_loops: tuple[str, ...]

  @property
  def total_cycles(self) -> float:
    return sum(self.cycles.values())

  @property
  def wire_bytes(self) -> float:
    """Bytes that one device sends within its slice."""
    return math.fsum(c.wire_bytes for c in self.collectives if not c.crosses_slices)

  @property
  def dcn_bytes(self) -> float:
    """Bytes that one device sends to other slices."""
    return math.fsum(c.wire_bytes for c in self.collectives if c.crosses_slices)


def read_hlo(text: str, *, num_slices: int = 1) -> Reading:
  """Reads the text of an optimized module.

  Args:
    text: `Compiled.as_text()`, or libtpu's `*.after_codegen.txt`. Of a program for
      several slices it is that of one of them; what goes to the others is in sends.
    num_slices: that the program runs on.

  Raises:
    ValueError: if it is no HLO module, or a collective cannot be read.
  """
  return _Reader(parse_module(text), num_slices).read()


class _Reader:
  def __init__(self, module: Module, num_slices: int):
    self._module = module
    self._num_slices = num_slices
    self._cycles: dict[str, float] = {"matmul": 0.0, "elementwise": 0.0, "copies": 0.0}
    self._collectives: dict[tuple, list[float]] = {}
    self._kernels: collections.Counter[str] = collections.Counter()
    self._operations: list[Operation] = []
    self._unknown: list[str] = []

  def read(self) -> Reading:
    self._walk(self._module.entry, 1)
    collectives = [
      Collective(
        kind=kind,
        group_size=size,
        is_async=is_async,
        crosses_slices=crosses,
        count=int(count),
        logical_bytes=logical,
        wire_bytes=wire,
      )
      for (kind, size, is_async, crosses), (
        count,
        logical,
        wire,
      ) in self._collectives.items()
    ]
    return Reading(
      cycles=self._cycles,
      collectives=tuple(sorted(collectives, key=lambda c: -c.wire_bytes)),
      kernel_calls=dict(sorted(self._kernels.items())),
      operations=tuple(sorted(self._operations, key=lambda o: -o.cycles)),
      unknown_loops=tuple(self._unknown),
    )

  def _walk(self, computation: str, times: int) -> None:
    for instruction in self._module.instructions(computation):
      self._visit(computation, instruction, times)

  def _visit(self, computation: str, instruction: Instruction, times: int) -> None:
    opcode = instruction.opcode
    if opcode == "while":
      body = instruction.called("body")
      trips = self._count_trips(computation, instruction)
      assert body is not None, instruction.name
      self._walk(body, times * trips)
    elif opcode == "conditional":
      self._walk_longest_branch(instruction, times)
    elif opcode in ("call", "async-start"):
      callee = instruction.called("to_apply") or instruction.called("calls")
      if callee is not None:
        self._walk_call(callee, times, is_async=opcode == "async-start")
    elif (base := opcode.removesuffix("-start")) in _COLLECTIVES:
      self._add_collective(instruction, base, times, opcode.endswith("-start"))
    elif opcode == "send" and "xla_megascale_runtime" in instruction.rest:
      self._add_transfer_between_slices(instruction, times)
    elif opcode == "custom-call" and '"tpu_custom_call"' in instruction.rest:
      self._kernels[re.sub(r"(\.clone|\.\d+)+$", "", instruction.name)] += times
    else:
      self._add_cycles(instruction, times)
      if opcode == "fusion":
        self._add_fused_collectives(instruction, times)

  def _walk_call(self, callee: str, times: int, *, is_async: bool) -> None:
    for instruction in self._module.instructions(callee):
      if is_async and instruction.opcode in _COLLECTIVES:
        self._add_collective(instruction, instruction.opcode, times, True)
      else:
        self._visit(callee, instruction, times)

  def _walk_longest_branch(self, instruction: Instruction, times: int) -> None:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    names = re.findall(r"%?([\w.\-]+)", listed[1]) if listed else []
    for attribute in ("true_computation", "false_computation"):
      name = instruction.called(attribute)
      names += [name] if name else []

    def cost(name: str) -> float:
      reader = _Reader(self._module, self._num_slices)
      reader._walk(name, 1)
      return sum(reader._cycles.values())

    if names:
      self._walk(max(names, key=cost), times)

  def _add_cycles(self, instruction: Instruction, times: int) -> None:
    cycles = instruction.estimated_cycles
    if not cycles:
      return
    group = self._group_of(instruction)
    self._cycles[group] += cycles * times
    self._operations.append(
      Operation(
        name=instruction.name,
        op_name=instruction.op_name,
        group=group,
        shape=instruction.shape,
        count=times,
        cycles=float(cycles * times),
      )
    )

  def _group_of(self, instruction: Instruction) -> Group:
    opcodes = frozenset({instruction.opcode})
    if instruction.opcode == "fusion":
      callee = instruction.called("calls")
      assert callee is not None, instruction.name
      opcodes = self._opcodes(callee)
    if opcodes & {"convolution", "dot"}:
      return "matmul"
    return "copies" if opcodes <= _MOVES else "elementwise"

  @functools.cache  # noqa: B019 (a reader lives as long as one reading)
  def _opcodes(self, computation: str) -> frozenset[str]:
    found: set[str] = set()
    for instruction in self._module.instructions(computation):
      if instruction.opcode == "fusion":
        callee = instruction.called("calls")
        assert callee is not None, instruction.name
        found |= self._opcodes(callee)
      else:
        found.add(instruction.opcode)
    return frozenset(found)

  def _add_fused_collectives(self, fusion: Instruction, times: int) -> None:
    """Counts collectives inside a fusion: all-reduce and slice is a reduce-scatter."""
    callee = fusion.called("calls")
    if callee is None:
      return
    for instruction in self._module.instructions(callee):
      kind = instruction.opcode
      if kind == "fusion":
        self._add_fused_collectives(instruction, times)
      if kind not in _COLLECTIVES:
        continue
      if kind == "all-reduce" and "all-reduce-scatter" in callee:
        kind = "reduce-scatter"
      self._add_collective(instruction, kind, times, False)

  def _add_collective(
    self, instruction: Instruction, kind: str, times: int, is_async: bool
  ) -> None:
    size = self._read_group_size(instruction)
    if size < 2:
      return
    result = instruction.result_bytes
    if is_async and instruction.shape.startswith("("):
      result = _started_bytes(kind, instruction.shape)
    if kind == "reduce-scatter" and instruction.opcode == "reduce-scatter":
      result *= size
    share = (size - 1) / size
    wire = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
    self._count(kind, size, is_async, False, times, result, result * wire)

  def _add_transfer_between_slices(self, send: Instruction, times: int) -> None:
    """Counts a collective over the network, which goes through the hosts."""
    named = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.rest)
    kind = named[1].lower().replace("_", "-") if named else "transfer"
    slices = self._num_slices
    # A send returns (what is sent, context, token).
    sent = count_bytes(re.findall(r"\w+\[[\d,]*\]", send.shape)[0])
    share = (slices - 1) / slices
    wire = {"all-reduce": 2 * share, "all-gather": slices - 1.0}.get(kind, share)
    self._count(kind, slices, True, True, times, sent, sent * wire)

  def _count(
    self,
    kind: str,
    size: int,
    is_async: bool,
    crosses: bool,
    times: int,
    logical: int,
    wire: float,
  ) -> None:
    key = (kind, size, is_async, crosses)
    entry = self._collectives.setdefault(key, [0.0, 0.0, 0.0])
    for i, value in enumerate((1, logical, wire)):
      entry[i] += value * times

  def _read_group_size(self, instruction: Instruction) -> int:
    groups = parse_groups(instruction.rest)
    if groups is None:
      # Left out it would look free.
      raise ValueError(
        f"The groups of {instruction.opcode} {instruction.name} cannot be read: "
        f"{instruction.rest[:300]}"
      )
    return max(map(len, groups))

  def _count_trips(self, computation: str, loop: Instruction) -> int:
    known = re.search(r'known_trip_count[^0-9]*"?(\d+)', loop.rest)
    if known:
      return int(known[1])
    trips = self._count_trips_from_condition(computation, loop)
    if trips is None:
      self._unknown.append(loop.name)
      return 1
    return trips

  def _count_trips_from_condition(
    self, computation: str, loop: Instruction
  ) -> int | None:
    """Reads `index < constant`, and where the index starts."""
    condition = loop.called("condition")
    if condition is None:
      return None
    instructions = self._module.computations[condition]
    root = self._module.root(condition)
    while root.opcode in ("fusion", "bitcast", "copy") and root.operands:
      if root.opcode == "fusion":
        callee = root.called("calls")
        assert callee is not None
        limits = [_constant(instructions.get(operand)) for operand in root.operands] + [
          _constant(i) for i in self._module.instructions(callee)
        ]
        limit = max((x for x in limits if x is not None), default=None)
        inner = self._module.root(callee)
        counts_up = inner.opcode == "compare" and "direction=LT" in inner.rest
        return limit if counts_up else None
      root = instructions[root.operands[0]]
    if root.opcode != "compare" or len(root.operands) != 2:
      return None
    left, right = (instructions.get(name) for name in root.operands)
    limit = _constant(right)
    if not re.search(r"direction=L[TE]\b", root.rest):
      return None
    index = re.search(r"#(\d+)$", root.operands[0])
    if index is None and left is not None and left.opcode == "get-tuple-element":
      index = re.search(r"index=(\d+)", left.rest)
    if limit is None or (index is None and left is None):
      return None
    start = self._find_start(computation, loop, int(index[1])) if index else 0
    more = 1 if "direction=LE" in root.rest else 0
    return max(limit - start + more, 0)

  def _find_start(self, computation: str, loop: Instruction, index: int) -> int:
    """Returns the constant that element `index` of the loop's tuple starts from."""
    here = self._module.computations[computation]
    operand = here.get(loop.operands[0]) if loop.operands else None
    if operand is None or operand.opcode != "tuple" or index >= len(operand.operands):
      return 0
    first = here.get(operand.operands[index])
    while first is not None and first.opcode in ("copy", "bitcast") and first.operands:
      first = here.get(first.operands[0])
    return _constant(first) or 0


def _started_bytes(kind: str, shape: str) -> int:
  """Bytes of an asynchronous collective, from what its start returns.

  An all-reduce returns its results; the others (operands, results, contexts), where
  several collectives may have been combined.
  """
  if kind == "all-reduce":
    return count_bytes(shape)
  nested = re.findall(r"\(([^()]*)\)", shape[1:-1])
  if len(nested) >= 2:  # ((operands), (results), ...)
    return max(map(count_bytes, nested[:2]))
  return max(map(count_bytes, re.findall(r"\w+\[[\d,]*\]", shape)))


def _constant(instruction: Instruction | None) -> int | None:
  if instruction is None or instruction.opcode != "constant":
    return None
  match = re.fullmatch(r"-?\d+", instruction.operands[0])
  return int(match[0]) if match else None
