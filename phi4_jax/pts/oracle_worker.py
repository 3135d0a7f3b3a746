"""The other end of `oracle_process.py`: a process that judges, one request at a time.

Run as a file, never imported: it needs the standard library, and whatever the rule
needs (Math-Verify, or a user's own function). A request is a line of JSON, and so is
its answer. What a rule prints is kept and sent along; its standard streams lead
nowhere, so that nothing it does can be taken for an answer.

Math-Verify (Apache-2.0) compares expressions. It is called without its own time limits,
which would turn "too slow" into "wrong" without a word.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import logging
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MOST_PRINTED = 500
# An answer with more digits, or a polynomial of a higher power, is not computed.
_MOST_DIGITS = 5_000
_MOST_POWER = 40
_MOST_TERMS = 10_000


class _Printed(io.TextIOBase):
  """Keeps the beginning of what is printed."""

  def __init__(self):
    self.text = ""

  def writable(self) -> bool:
    return True

  def write(self, text: str) -> int:
    self.text += text[: _MOST_PRINTED - len(self.text)]
    return len(text)


def load_function(name: str) -> tuple[Callable[..., Any], str]:
  """Returns the function of 'module:function' or 'file.py:function', and a digest.

  The digest is of the file that defines it, not of what that imports.
  """
  where, found, attribute = name.rpartition(":")
  if not found or not where or not attribute:
    raise ValueError("it must read 'module:function' or 'file.py:function'")
  if where.endswith(".py"):
    path = Path(where).resolve()
    if not path.is_file():
      raise FileNotFoundError(f"there is no file {where}")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
  else:
    sys.path.insert(0, os.getcwd())
    module = importlib.import_module(where)
  function = getattr(module, attribute, None)
  if not callable(function):
    known = [n for n, value in vars(module).items() if inspect.isfunction(value)]
    raise AttributeError(
      f"{where} has no function {attribute!r}; it has {', '.join(known) or 'none'}"
    )
  file = getattr(module, "__file__", None)
  data = Path(file).read_bytes() if file and Path(file).is_file() else b""
  return function, hashlib.sha256(data).hexdigest()[:16]


class FunctionRule:
  """A user's function of (question, response, reference) to bool."""

  def __init__(self, settings: dict[str, Any]):
    self._function, self.digest = load_function(settings["function"])

  def judge(self, request: dict[str, Any]) -> bool:
    verdict = self._function(
      request["question"], request["response"], request["reference"]
    )
    # numpy's bool is welcome, and known without importing numpy.
    if isinstance(verdict, bool) or type(verdict).__name__ in ("bool_", "bool"):
      return bool(verdict)
    raise TypeError(f"it returned {_short(repr(verdict))}, not True or False")

  def check(self, request: dict[str, Any]) -> str | None:
    return None


class MathRule:
  """Equality of mathematical expressions by Math-Verify."""

  digest = ""

  def __init__(self, settings: dict[str, Any]):
    del settings
    math_verify = importlib.import_module("math_verify")
    self._parse, self._verify = math_verify.parse, math_verify.verify
    self._sympy = importlib.import_module("sympy")
    logging.disable(logging.WARNING)  # "Timeout is disabled"
    self._references: dict[str, list[Any]] = {}
    self._expressions("$1$")  # builds its tables

  def judge(self, request: dict[str, Any]) -> bool:
    """Compares; a box with a percent sign means its number and its hundredth."""
    reference, response = request["reference"], request["response"]
    gold = self._reference(reference)
    percent = request["boxed"] and ("%" in response) != ("%" in reference)
    if request["boxed"]:
      response = _without_percent(response)
    target = self._expressions(response)
    if not gold or not target:
      return False
    if any(map(self._is_large, target)) and not any(map(self._is_large, gold)):
      return False
    if self._verify(gold, target, timeout_seconds=None):
      return True
    if not percent:
      return False
    numbers = [one for one in target if getattr(one, "is_number", False)]
    scaled = [one / 100 if "%" in request["response"] else one * 100 for one in numbers]
    return bool(scaled) and self._verify(gold, scaled, timeout_seconds=None)

  def check(self, request: dict[str, Any]) -> str | None:
    """Says why nothing can be compared with a reference."""
    reference = request["reference"]
    if self._reference(reference):
      return None
    return f"Math-Verify finds no expression in the answer {_short(repr(reference))}"

  def _reference(self, text: str) -> list[Any]:
    if text not in self._references:
      marked = "$" in text or "\\boxed" in text
      self._references[text] = self._expressions(
        text if marked else f"$\\boxed{{{_without_percent(text)}}}$"
      )
    return self._references[text]

  def _expressions(self, text: str) -> list[Any]:
    """Returns what Math-Verify reads in a text; sympy objects only."""
    found = self._parse(text, parsing_timeout=None)
    return [one for one in found if not isinstance(one, str)]

  def _is_large(self, expression: Any) -> bool:
    """Whether computing an expression could take for ever."""
    sympy = self._sympy
    if not isinstance(expression, sympy.Basic):
      return False
    for number, node in enumerate(sympy.preorder_traversal(expression)):
      if number > _MOST_TERMS:
        return True
      if isinstance(node, sympy.Pow) and node.exp.is_number:
        base, power = _magnitude(node.base, sympy), _magnitude(node.exp, sympy)
        if power > math.log10(_MOST_DIGITS):
          return True
        if node.base.free_symbols and power > math.log10(_MOST_POWER):
          return True
        if base * 10**power > _MOST_DIGITS:
          return True
      products = sympy.factorial | sympy.factorial2 | sympy.binomial
      if isinstance(node, products) and any(
        _magnitude(part, sympy) > 3 for part in node.args
      ):
        return True
      if isinstance(node, sympy.Sum | sympy.Product):
        for limit in node.limits:
          if any(_magnitude(part, sympy) > 4 for part in limit[1:] if part.is_finite):
            return True
    return False


def _without_percent(text: str) -> str:
  return text.replace("\\%", "").replace("%", "")


def _magnitude(node: Any, sympy: Any) -> float:
  """Returns about log10 of the size of a number; 0 of what has no known size."""
  if isinstance(node, sympy.Integer):
    return len(str(abs(node.p))) if node.p.bit_length() < 10_000 else math.inf
  if isinstance(node, sympy.Number):
    return max(0.0, math.log10(abs(float(node)) or 1)) if node.is_finite else 0.0
  parts = [_magnitude(part, sympy) for part in node.args]
  if isinstance(node, sympy.Pow):
    return parts[0] * 10 ** parts[1] if parts[1] < 5 else math.inf
  if isinstance(node, sympy.factorial):
    return parts[0] * 10 ** parts[0] if parts[0] < 5 else math.inf
  if isinstance(node, sympy.Mul):
    return sum(parts)
  return max(parts, default=0.0)


def _short(text: str, most: int = 200) -> str:
  return text if len(text) <= most else text[: most - 3] + "..."


RULES = {"function": FunctionRule, "math": MathRule}


def answer(rule: FunctionRule | MathRule, request: dict[str, Any]) -> dict[str, Any]:
  """Returns {"verdict": ...} or {"raised": ...}, and what was printed."""
  printed = _Printed()
  with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    try:
      verb = rule.check if request["verb"] == "check" else rule.judge
      said: dict[str, Any] = {"verdict": verb(request)}
    except BaseException as error:  # SystemExit and KeyboardInterrupt are a rule's, too
      said = {"raised": _describe(error)}
  return said | {"printed": printed.text}


def _describe(error: BaseException) -> str:
  try:
    text = str(error)
  except BaseException:
    text = "(and its message cannot be shown)"
  return _short(f"{type(error).__name__}: {text}", 500)


def _end_with(parent: int) -> None:
  """Ends this process, whatever it is doing, when its parent is gone."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


def main() -> None:
  # The channel moves out of the way of whatever reads or prints.
  requests = os.fdopen(os.dup(0), "rb")
  answers = os.fdopen(os.dup(1), "wb")
  nowhere = os.open(os.devnull, os.O_RDWR)
  for stream in (0, 1, 2):
    os.dup2(nowhere, stream)
  parent = int(sys.argv[1])
  threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

  def send(record: dict[str, Any]) -> None:
    answers.write(json.dumps(record).encode() + b"\n")
    answers.flush()

  settings = json.loads(requests.readline())
  if settings["memory_mib"]:
    most = settings["memory_mib"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
  sys.setrecursionlimit(3_000)
  printed = _Printed()
  with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    try:
      rule = RULES[settings["rule"]](settings)
    except BaseException as error:
      send({"raised": _describe(error), "printed": printed.text})
      return
  send({"digest": rule.digest})
  for line in requests:
    send(answer(rule, json.loads(line)))


if __name__ == "__main__":
  main()
