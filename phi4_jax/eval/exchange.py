"""Between a task's texts and a sampler's tokens: prompts go in, responses come out.

Evaluation and the search for pivotal tokens share it, so that a response means the
same to both. Refuses to know what is done with a verdict.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.differences import list_differences
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import read_json, text_sha256, write_json
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.eval.types import Example, Task


def encode_prompts(
  task: Task, examples: Sequence[Example], vocabulary: Vocabulary, max_length: int
) -> list[list[int]]:
  """Returns the ids after which the response to each example is sampled.

  Raises:
    ConfigError: if a prompt leaves no room for a response below `max_length`.
  """
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


def find_prompt_lengths(
  task: Task, num_examples: int, vocabulary: Vocabulary, max_length: int
) -> tuple[int, int]:
  """Returns how long the shortest and the longest prompt of a task are, in tokens.

  Raises:
    ConfigError: as `encode_prompts`.
  """
  examples = task.examples(num_examples)
  lengths = list(map(len, encode_prompts(task, examples, vocabulary, max_length)))
  return min(lengths), max(lengths)


def decode_response(
  token_ids: Sequence[int], finish: str, vocabulary: Vocabulary
) -> str:
  """Returns the text of a response, without the stop token that ended it."""
  return decode_ids(token_ids[:-1] if finish == "stop" else token_ids, vocabulary)


def decode_ids(token_ids: Sequence[int], vocabulary: Vocabulary) -> str:
  """Returns the text of ids, special tokens left out as the vocabulary does.

  An id that the vocabulary lacks becomes U+FFFD: a model's embedding may be padded
  beyond its vocabulary, and nothing keeps a badly trained one from drawing such an
  id.
  """
  parts: list[list[int]] = [[]]
  for token_id in token_ids:
    if token_id < vocabulary.size:
      parts[-1].append(token_id)
    else:
      parts.append([])
  return "\ufffd".join(vocabulary.decode(part) for part in parts)


def fingerprint_examples(examples: Sequence[Example]) -> str:
  """Returns a digest of everything that the examples say."""
  content = [[e.id, [dict(m) for m in e.messages], e.reference] for e in examples]
  return text_sha256(json.dumps(content, ensure_ascii=False))


def check_settings(
  out_dir: Path,
  settings: Mapping[str, Any],
  *,
  what: str,
  log: str | os.PathLike,
  defaults: Mapping[str, Any] | None = None,
) -> None:
  """Writes settings.json, which says what a run is, or compares it with the one there.

  Args:
    out_dir: the run's folder.
    settings: what decides the run's results, as JSON values.
    what: the kind of run, for messages ("an evaluation").
    log: name of the file that must not be there without settings.
    defaults: what settings are where a run was started before there were such.

  Raises:
    ConfigError: if the folder's run was started with other settings.
    DataError: if there is a log and no settings.
  """
  path = out_dir / "settings.json"
  if path.exists():
    started = {**(defaults or {}), **read_json(path)}
    wanted = json.loads(json.dumps(settings))  # as a file would give them back
    differing = list_differences({name: started.get(name) for name in wanted}, wanted)
    if differing:
      raise ConfigError(
        f"{out_dir} holds {what} with other settings (there -> now): "
        f"{'; '.join(differing)}. Choose another directory, or delete this one."
      )
  elif (out_dir / log).exists():
    raise DataError(
      f"{out_dir} holds {log} without settings.json, so it is unknown what they "
      "answer. Choose another directory, or delete this one."
    )
  else:
    write_json(path, settings)
