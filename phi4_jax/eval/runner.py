"""Runs a task on a sampler: samples, grades, writes it all down, and can resume.

Knows tasks and samplers by their protocols; refuses to know models.

A run directory holds `settings.json` (what was asked), `samples.jsonl` (one line
for each response, appended as batches finish), `results.json` and
`transcripts.md`. Started again after being killed, it samples only what is
missing, and since a response depends on nothing but its prefix and its key path
(example, sample), all four files end up the same.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import JsonlLog, read_json, text_sha256, write_json
from phi4_jax.common.sampler import Completion, Sampler
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.tokenizer import Vocabulary
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
  prompts = _encode_prompts(task, examples, vocabulary, sampler.law.max_length)
  _check_settings(
    out_dir,
    {
      "task": task.name,
      "num_examples": num_examples,
      "samples_per_example": samples_per_example,
      "examples_sha256": _fingerprint(examples),
      "vocabulary": vocabulary.fingerprint,
      "sampler_id": sampler_id,
      "law": dataclasses.asdict(sampler.law),
    },
  )

  log = JsonlLog(out_dir / "samples.jsonl")
  try:
    records = {(r["example"], r["sample"]): r for r in log.records()}
    wanted = [(e, s) for e in range(num_examples) for s in range(samples_per_example)]
    missing = [path for path in wanted if path not in records]
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


def _encode_prompts(
  task: Task, examples: Sequence[Example], vocabulary: Vocabulary, max_length: int
) -> list[list[int]]:
  prompts = []
  for example in examples:
    prompt = list(encode_prompt(example.messages, vocabulary))
    if len(prompt) >= max_length:
      raise ConfigError(
        f"The prompt of example {example.id!r} of task {task.name!r} has "
        f"{len(prompt)} tokens, which leaves no room for a response under "
        f"SamplingLaw.max_length ({max_length}; prompt and response together). "
        "Raise it."
      )
    prompts.append(prompt)
  return prompts


def _fingerprint(examples: Sequence[Example]) -> str:
  content = [[e.id, [dict(m) for m in e.messages], e.reference] for e in examples]
  return text_sha256(json.dumps(content, ensure_ascii=False))


def _check_settings(out_dir: Path, settings: Mapping[str, Any]) -> None:
  """Writes what this run is, or compares it with what was started there."""
  path = out_dir / "settings.json"
  if path.exists():
    started = read_json(path)
    differing = [
      f"{name}: {started.get(name)!r} there, {value!r} now"
      for name, value in settings.items()
      if started.get(name) != value
    ]
    if differing:
      raise ConfigError(
        f"{out_dir} holds an evaluation with other settings ("
        + "; ".join(differing)
        + "). Choose another directory, or delete this one."
      )
  elif (out_dir / "samples.jsonl").exists():
    raise DataError(
      f"{out_dir} holds samples.jsonl without settings.json, so it is unknown what "
      "they answer. Choose another directory, or delete this one."
    )
  else:
    write_json(path, settings)


def _decode(ids: Sequence[int], vocabulary: Vocabulary) -> str:
  """Decodes ids; one that the vocabulary lacks becomes U+FFFD.

  A model's embedding may be padded beyond its vocabulary, and nothing keeps a badly
  trained one from drawing such an id.
  """
  parts: list[list[int]] = [[]]
  for token_id in ids:
    if token_id < vocabulary.size:
      parts[-1].append(token_id)
    else:
      parts.append([])
  return "\ufffd".join(vocabulary.decode(part) for part in parts)


def _grade(
  task: Task,
  example: Example,
  path: tuple[int, int],
  completion: Completion,
  vocabulary: Vocabulary,
) -> dict[str, Any]:
  """Returns the line of samples.jsonl for one response."""
  stopped = completion.finish == "stop"
  ids = completion.token_ids[:-1] if stopped else completion.token_ids
  response = _decode(ids, vocabulary)
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
