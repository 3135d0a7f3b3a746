"""A contender that sleeps, and fails in whatever way a test asks for."""

import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.contender import Prepared, serve


def prepare(options: dict[str, Any]) -> Prepared:
  # Libraries write to standard output as they please, from C too.
  print("loading\n" * 3)
  subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
  if options.get("fail") == "prepare":
    raise RuntimeError("no such model")
  settings = {"device": "cpu", "precision": "float32", "threads": 1}
  if options.get("fail") == "settings":
    del settings["threads"]
  runs = 0

  def run() -> dict[str, float] | None:
    nonlocal runs
    runs += 1
    print("working")
    if options.get("fail") == "run" and runs == 3:
      print("out of memory", file=sys.stderr)
      os._exit(9)
    if options.get("fail") == "hang" and runs == 2:
      time.sleep(60)
    if path := options.get("trace"):
      with open(path, "a") as file:
        file.write(f"{options['name']}\n")
    time.sleep(options.get("seconds", 0.0))
    seen = {"seed": options["seed"], "runs": runs}
    return {**seen, "work": options["work"]} if "work" in options else seen

  return Prepared(run=run, settings=settings)


if __name__ == "__main__":
  serve(prepare, packages=["numpy"])
