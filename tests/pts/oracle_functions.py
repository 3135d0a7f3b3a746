"""A user's functions for tests: good ones, and every way to be bad."""

import os
import sys
import time


def right(question, response, reference):
  return response == reference


def asks_the_question(question, response, reference):
  return question in response


class bool_:  # noqa: N801
  """Named like numpy's."""

  def __bool__(self):
    return True


def returns_numpys(question, response, reference):
  return bool_()


def prints(question, response, reference):
  print("judging", response)
  print("x" * 10_000_000)
  os.write(1, b'{"verdict": true}\n')
  os.system("echo to the real standard output")
  print("to the other", file=sys.stderr)
  return response == reference


def by_response(question, response, reference):
  """Does what the response says."""
  match response:
    case "raise":
      raise ValueError("no\nsuch answer")
    case "exit":
      sys.exit(3)
    case "leave":
      os._exit(3)
    case "crash":
      os.kill(os.getpid(), 11)
    case "hang":
      time.sleep(600)
    case "spin":
      while True:
        pass
    case "big number":
      return 10 ** (10**9) > 0
    case "eat":
      return len([bytearray(2**26) for _ in range(2**20)]) > 0
    case "recurse":
      return by_response(question, response, reference)
    case "none":
      return None
    case "number":
      return 1
    case "text":
      return "True"
    case "interrupt":
      raise KeyboardInterrupt
    case "read":
      return sys.stdin.read() != ""
    case "close":
      os.close(1)
      os.close(0)
      return True
    case "bad error":
      raise _BadError
  return response == reference


class _BadError(Exception):
  def __str__(self):
    raise ValueError


def waits_a_little(question, response, reference):
  time.sleep(0.5)
  return response == reference


def starts_a_process(question, response, reference):
  os.system(f"sleep 600 & echo $! > {response}; wait")
  return True
