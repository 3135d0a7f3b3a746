"""Ids that tiktoken gives to texts, and how long it takes.

  PEER_PYTHON -m benchmarks.peers.tokenizer_parity < request.json > answer.json

The request has pattern, ranks (pairs of base64 and number), specials, texts, repeats.
"""

import base64
import importlib.metadata
import json
import sys
import time

import tiktoken


def main() -> int:
  request = json.load(sys.stdin)
  encoding = tiktoken.Encoding(
    name="given",
    pat_str=request["pattern"],
    mergeable_ranks={base64.b64decode(t): rank for t, rank in request["ranks"]},
    special_tokens=request["specials"],
  )
  rows, seconds = [], []
  for _ in range(request["repeats"]):
    start = time.perf_counter()
    rows = [encoding.encode_ordinary(text) for text in request["texts"]]
    seconds.append(time.perf_counter() - start)
  answer = {
    "tiktoken": importlib.metadata.version("tiktoken"),
    "ids": rows,
    "seconds": seconds,
  }
  json.dump(answer, sys.stdout)
  return 0


if __name__ == "__main__":
  sys.exit(main())
