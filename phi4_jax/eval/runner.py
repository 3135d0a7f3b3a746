"""Runs a task on a sampler: samples, grades, writes it all down, and can resume.

Knows tasks and samplers by their protocols; refuses to know models.

A run directory holds `settings.json` (what was asked), `samples.jsonl` (one line
for each response, appended as batches finish), `results.json` and
`transcripts.md`. Started again after being killed, it samples only what is
missing, and since a response depends on nothing but its prefix and its key path
(example, sample), all four files end up the same.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import JsonlLog
from phi4_jax.common.sampler import Completion, Sampler
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.eval.exchange import (
  check_settings,
  decode_response,
  encode_prompts,
  fingerprint_examples,
)
from phi4_jax.eval.report import Evaluation, summarize, write_report
from phi4_jax.eval.types import Example, Task


def evaluate(
  task: Task,
  sampler: Sampler,
  vocabulary: Vocabulary,
  *,
  num_examples: int,
  out_dir: str | os.PathLike,
  samples_per_example: int = 1,
  sampler_id: str = "",
  rows_per_call: int = 512,
  num_transcripts: int = 8,
  progress: Callable[[int, int, int], None] | None = None,
) -> Evaluation:
  """Measures `sampler` on the first `num_examples` examples of `task`.

  Args:
    task: gives examples and grades responses.
    sampler: draws the responses; key paths are (example index, sample index).
    vocabulary: encodes prompts in the chat format and decodes responses.
    num_examples: how many examples.
    out_dir: the run directory; a started run in it goes on where it ended.
    samples_per_example: independent responses to each example.
    sampler_id: names what the protocol cannot tell, weights and seed. A run that
      was started with another one is refused.
    rows_per_call: responses asked of the sampler at a time. They are on disk when
      the call returns; best several of the sampler's batches.
    num_transcripts: responses shown in transcripts.md, wrong ones first.
    progress: called after each call with (responses, all responses, correct ones).

  Raises:
    ConfigError: if `out_dir` holds a run with other settings, or a number is not
      positive.
    ConfigError: if a prompt leaves no room for a response.
  """
  for name, value in (
    ("num_examples", num_examples),
    ("samples_per_example", samples_per_example),
    ("rows_per_call", rows_per_call),
  ):
    if value < 1:
      raise ConfigError(f"{name} ({value}) must be 1 or more.")
  out_dir = Path(out_dir)
  examples = task.examples(num_examples)
  prompts = encode_prompts(task, examples, vocabulary, sampler.law.max_length)
  check_settings(
    out_dir,
    {
      "task": task.name,
      "num_examples": num_examples,
      "samples_per_example": samples_per_example,
      "examples_sha256": fingerprint_examples(examples),
      "vocabulary": vocabulary.fingerprint,
      "sampler_id": sampler_id,
      "law": dataclasses.asdict(sampler.law),
    },
    what="an evaluation",
    log="samples.jsonl",
  )

  log = JsonlLog(out_dir / "samples.jsonl")
  try:
    records = {(r["example"], r["sample"]): r for r in log.records()}
    wanted = [(e, s) for e in range(num_examples) for s in range(samples_per_example)]
    # Prompts of like length go together: a sampler reads them in as many pieces.
    missing = sorted(
      (path for path in wanted if path not in records),
      key=lambda path: (len(prompts[path[0]]), path),
    )
    for start in range(0, len(missing), rows_per_call):
      paths = missing[start : start + rows_per_call]
      completions = sampler.sample([prompts[e] for e, _ in paths], paths)
      for path, completion in zip(paths, completions, strict=True):
        record = _grade(task, examples[path[0]], path, completion, vocabulary)
        log.append(record)
        records[path] = record
      if progress is not None:
        num_correct = sum(record["correct"] for record in records.values())
        progress(len(records), len(wanted), num_correct)
  finally:
    log.close()

  evaluation = summarize(task.name, [records[path] for path in wanted])
  write_report(out_dir, evaluation, examples, records, num_transcripts)
  return evaluation


def _grade(
  task: Task,
  example: Example,
  path: tuple[int, int],
  completion: Completion,
  vocabulary: Vocabulary,
) -> dict[str, Any]:
  """Returns the line of samples.jsonl for one response."""
  response = decode_response(completion.token_ids, completion.finish, vocabulary)
  verdict = task.grade(example, response)
  return {
    "example": path[0],
    "sample": path[1],
    "id": example.id,
    "correct": verdict.correct,
    "labels": dict(verdict.labels),
    "finish": completion.finish,
    "num_tokens": len(completion.token_ids),
    "logprob": sum(completion.logprobs),
    "response": response,
    "token_ids": list(completion.token_ids),
  }
