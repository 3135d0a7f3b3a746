"""Optimized HLO as text, parsed into computations and instructions.

Knows the syntax that XLA prints; refuses to know what anything costs.
"""

import dataclasses
import re
from collections.abc import Iterator

_DTYPE_BITS = {
  "pred": 8,
  "s4": 4,
  "u4": 4,
  "f4e2m1fn": 4,
  "s8": 8,
  "u8": 8,
  "f8e4m3fn": 8,
  "f8e5m2": 8,
  "f8e4m3b11fnuz": 8,
  "f8e4m3": 8,
  "f8e3m4": 8,
  "f8e4m3fnuz": 8,
  "f8e5m2fnuz": 8,
  "f8e8m0fnu": 8,
  "s2": 2,
  "u2": 2,
  "c128": 128,
  "s16": 16,
  "u16": 16,
  "bf16": 16,
  "f16": 16,
  "s32": 32,
  "u32": 32,
  "f32": 32,
  "s64": 64,
  "u64": 64,
  "f64": 64,
  "c64": 64,
}
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\]")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `name = shape opcode(operands), attributes`."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  @property
  def result_bytes(self) -> int:
    return count_bytes(self.shape)

  @property
  def estimated_cycles(self) -> int | None:
    match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
    return int(match[1]) if match else None

  @property
  def op_name(self) -> str:
    """Where in the traced program it comes from."""
    match = re.search(r'op_name="([^"]*)"', self.rest)
    return match[1] if match else ""

  def called(self, attribute: str) -> str | None:
    """Returns the computation that an attribute such as `calls` names."""
    match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
    return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Module:
  """Computations by name, and which of them is the entry."""

  computations: dict[str, dict[str, Instruction]]
  entry: str

  def instructions(self, computation: str) -> Iterator[Instruction]:
    yield from self.computations[computation].values()

  def root(self, computation: str) -> Instruction:
    return next(i for i in self.instructions(computation) if i.is_root)


def count_bytes(shape: str) -> int:
  """Returns the bytes of a shape as printed, `(bf16[3,4]{1,0}, f32[])` included.

  Raises:
    ValueError: if an element type is unknown; left out it would look free.
  """
  total = 0
  for dtype, dimensions in _SHAPE.findall(shape):
    if dtype in ("token", "opaque"):
      continue
    if dtype not in _DTYPE_BITS:
      raise ValueError(f"The size of {dtype}, in the shape {shape}, is not known.")
    bits = _DTYPE_BITS[dtype]
    size = 1
    for n in dimensions.replace("<=", "").split(","):
      size *= int(n) if n else 1
    total += -(-size * bits // 8)
  return total


def parse_dimensions(shape: str) -> tuple[int, ...]:
  """Returns the dimensions of the first array of a shape."""
  match = _SHAPE.search(shape)
  if match is None or not match[2]:
    return ()
  return tuple(int(n) for n in match[2].replace("<=", "").split(","))


def parse_module(text: str) -> Module:
  """Parses the text of one optimized module.

  Raises:
    ValueError: if it has no entry computation.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = "", None
  for line in _join_lines(text):
    if not line.startswith((" ", "\t")):
      match = _COMPUTATION.match(line)
      if match:
        current = computations.setdefault(match[2], {})
        entry = match[2] if match[1] else entry
      elif line.startswith("}"):
        current = None
      continue
    match = _INSTRUCTION.match(line)
    if match and current is not None:
      instruction = _parse_instruction(match[2], match[3], bool(match[1]))
      current[instruction.name] = instruction
  if not entry:
    raise ValueError("This is no text of an HLO module: it has no ENTRY computation.")
  return Module(computations, entry)


def _join_lines(text: str) -> Iterator[str]:
  """Yields lines; an attribute that was printed over several lines becomes one."""
  lines = iter(text.splitlines())
  for line in lines:
    if "kernel_metadata={" in line and line.rstrip().endswith("{"):
      parts = [line.rstrip()]
      for more in lines:
        parts.append(more.strip())
        if more.startswith("}"):
          break
      line = "".join(parts)
    yield line


def _parse_instruction(name: str, text: str, is_root: bool) -> Instruction:
  shape, text = _take_shape(text)
  opcode, _, text = text.partition("(")
  operands, rest = _take_parenthesis(text)
  # `%tuple#2`, an element without an instruction of its own, keeps its number.
  names = tuple(re.findall(r"%([\w.\-]+(?:#\d+)?)", operands))
  if opcode in ("constant", "parameter"):
    names = (operands,)
  return Instruction(name, shape, opcode.strip(), names, rest, is_root)


def _take_shape(text: str) -> tuple[str, str]:
  if text.startswith("("):
    inside, rest = _take_parenthesis(text[1:])
    return f"({inside})", rest.lstrip()
  shape, _, rest = text.partition(" ")
  return shape, rest


def _take_parenthesis(text: str) -> tuple[str, str]:
  """Splits at the parenthesis that closes one opened just before `text`."""
  depth = 1
  for match in re.finditer(r"[()]", text):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return text[: match.start()], text[match.end() :]
  return text, ""
