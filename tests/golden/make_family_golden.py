"""Writes families.npz: tiny models of all supported families, from transformers.

    .venv-bench/bin/python tests/golden/make_family_golden.py

What it computes, and with which configurations, stands in
benchmarks/peers/hf_parity.py (size "golden"). Each name is CASE/WHAT:

    CASE/config                   config.json as transformers writes it
    CASE/weight/NAME              weights under their Hugging Face names, float16
    CASE/weights_of               in their place: the case that has the same
    CASE/token_ids, CASE/prompt   texts, and where decoding begins
    CASE/prefill/N                logits of the first N tokens
    CASE/decode                   logits of `generate` with its cache
    CASE/loss/N, CASE/grad/N/NAME mean loss of the first N tokens, its gradient
    about                         JSON: sizes, seed, versions
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import hf_parity  # noqa: E402

SEED = 20250113


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=Path, default=Path(__file__).parent)
  folder = parser.parse_args().out
  logging.disable(logging.WARNING)
  arrays = {
    f"{case}/{name}": value
    for case, found in hf_parity.compute_all("golden", SEED)
    for name, value in found.items()
  }
  arrays["about"] = np.array(json.dumps(hf_parity.about("golden", SEED)))
  path = folder / "families.npz"
  np.savez_compressed(path, **arrays)
  print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
