"""Runs a task on a sampler: samples, grades, writes it all down, and can resume.

Knows tasks and samplers by their protocols; refuses to know models.

A run directory holds `settings.json` (what was asked), `samples.jsonl` (one line
for each response, appended as it ends, put in the order of the questions when all
are there), `results.json` and `transcripts.md`. Started again after being killed, it
samples only what is missing, and since a response depends on nothing but its prefix
and its key path (example, sample), all four files end up the same.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import JsonlLog
from phi4_jax.common.sampler import (
  Branch,
  BranchSampler,
  Completion,
  Sampler,
  as_branches,
)
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
  sampler: Sampler | BranchSampler,
  vocabulary: Vocabulary,
  *,
  num_examples: int,
  out_dir: str | os.PathLike,
  samples_per_example: int = 1,
  first_sample: int = 0,
  sampler_id: str = "",
  rows_per_call: int = 512,
  num_transcripts: int = 8,
  progress: Callable[[int, int, int], None] | None = None,
) -> Evaluation:
  """Measures `sampler` on the first `num_examples` examples of `task`.

  Args:
    task: gives examples and grades responses.
    sampler: draws the responses; key paths are (example index, `first_sample` +
      sample index). One that takes branches is given all of them at once.
    vocabulary: encodes prompts in the chat format and decodes responses.
    num_examples: how many examples.
    out_dir: the run directory; a started run in it goes on where it ended.
    samples_per_example: independent responses to each example.
    first_sample: runs with other ones draw with other random numbers, and sample s
      from here is sample 0 of a run whose first sample is s.
    sampler_id: names what neither the protocol nor the arguments tell: weights and
      seed. A run that was started with another one is refused.
    rows_per_call: responses asked of a plain sampler at a time. They are on disk when
      the call returns; best several of the sampler's batches.
    num_transcripts: responses shown in transcripts.md, wrong ones first.
    progress: called after every `rows_per_call` responses and after the last one with
      (responses, all responses, correct ones).

  Raises:
    ConfigError: if `out_dir` holds a run with other settings, or a number is not
      positive.
    ConfigError: if a prompt leaves no room for a response.
    ValueError: if a response cannot be drawn (the model's logits are not finite);
      what was drawn before is on disk.
  """
  for name, value in (
    ("num_examples", num_examples),
    ("samples_per_example", samples_per_example),
    ("rows_per_call", rows_per_call),
  ):
    if value < 1:
      raise ConfigError(f"{name} ({value}) must be 1 or more.")
  if first_sample < 0:
    raise ConfigError(f"first_sample ({first_sample}) must be 0 or more.")
  branches = as_branches(sampler, rows_per_call=rows_per_call)
  out_dir = Path(out_dir)
  examples = task.examples(num_examples)
  prompts = encode_prompts(task, examples, vocabulary, sampler.law.max_length)
  settings = {
    "task": task.name,
    "num_examples": num_examples,
    "samples_per_example": samples_per_example,
    "first_sample": first_sample,
    "examples_sha256": fingerprint_examples(examples),
    "vocabulary": vocabulary.fingerprint,
    "sampler_id": sampler_id,
    "law": dataclasses.asdict(sampler.law),
  }
  check_settings(
    out_dir,
    settings,
    what="an evaluation",
    log="samples.jsonl",
    defaults={"first_sample": 0},
  )

  log = JsonlLog(out_dir / "samples.jsonl")
  try:
    records = {(r["example"], r["sample"]): r for r in log.records()}
    wanted = [(e, s) for e in range(num_examples) for s in range(samples_per_example)]
    missing = [path for path in wanted if path not in records]
    num_correct = sum(record["correct"] for record in records.values())
    drawn = _draw(branches, prompts, missing, first_sample)
    for count, (path, completion) in enumerate(drawn, start=1):
      example = examples[path[0]]
      if completion.error is not None:
        raise ValueError(
          f"Example {example.id!r} of task {task.name!r}, sample {path[1]}: "
          f"{completion.error}"
        )
      record = _grade(task, example, path, completion, vocabulary)
      log.append(record)
      records[path] = record
      num_correct += record["correct"]
      is_due = count % rows_per_call == 0 or count == len(missing)
      if progress is not None and is_due:
        progress(len(records), len(wanted), num_correct)
    log.put_in_order([records[path] for path in wanted])
  finally:
    log.close()

  evaluation = summarize(task.name, [records[path] for path in wanted])
  write_report(out_dir, evaluation, examples, records, num_transcripts)
  return evaluation


def _draw(
  sampler: BranchSampler,
  prompts: Sequence[list[int]],
  paths: Sequence[tuple[int, int]],
  first_sample: int,
) -> Iterator[tuple[tuple[int, int], Completion]]:
  """Yields (example, sample) with what was drawn for it, in any order."""
  texts = [tuple(prompt) for prompt in prompts]
  # Prompts of like length go together: a plain sampler reads them in as many pieces.
  ordered = sorted(paths, key=lambda path: (len(texts[path[0]]), path))
  branches = (
    Branch(
      text=texts[example],
      position=len(texts[example]),
      key_path=(example, first_sample + sample),
    )
    for example, sample in ordered
  )
  for branch, completion in sampler.run(branches):
    example, sample = branch.key_path
    yield (example, sample - first_sample), completion


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
