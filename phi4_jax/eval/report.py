"""What the graded responses say together, as numbers, a table and transcripts."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.io import write_atomic, write_json
from phi4_jax.common.text import format_table
from phi4_jax.eval.statistics import Interval, clustered_wilson_interval
from phi4_jax.eval.types import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelResult:
  """One value of one label.

  Attributes:
    count: responses with this value.
    share: of all responses.
    accuracy: of the responses with this value.
  """

  count: int
  share: Interval
  accuracy: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """The result of one task; intervals are Wilson's at 95%.

  With several responses to one example the intervals allow for their likeness
  (`clustered_wilson_interval`).

  Attributes:
    task: its name.
    num_examples: examples answered.
    num_samples: responses to all examples together.
    accuracy: share of correct responses.
    finished: share of responses that ended in a stop token before the cap.
    mean_num_tokens: new tokens of a response, the stop token included.
    labels: label -> value -> result. A response without the label counts as "".
  """

  task: str
  num_examples: int
  num_samples: int
  accuracy: Interval
  finished: Interval
  mean_num_tokens: float
  labels: Mapping[str, Mapping[str, LabelResult]]

  def table(self) -> str:
    """Formats accuracy, and each label's share and accuracy within, as a table."""
    rows = [["all", self.num_samples, "1", str(self.accuracy)]]
    for name, values in self.labels.items():
      for value, result in values.items():
        label = f"{name} = {value or '(none)'}"
        share = f"{result.share.estimate:.3f}"
        rows.append([label, result.count, share, str(result.accuracy)])
    return format_table(["responses", "n", "share", "accuracy [95%]"], rows)


def summarize(task: str, records: Sequence[Mapping[str, Any]]) -> Evaluation:
  """Reduces the records of samples.jsonl to an `Evaluation`."""
  examples = sorted({record["example"] for record in records})
  index = {example: i for i, example in enumerate(examples)}

  def share(chosen, among) -> Interval:
    hits, trials = [0] * len(examples), [0] * len(examples)
    for record in records:
      if among(record):
        trials[index[record["example"]]] += 1
        hits[index[record["example"]]] += bool(chosen(record))
    return clustered_wilson_interval(hits, trials)

  def everything(record) -> bool:
    return True

  def is_correct(record) -> bool:
    return record["correct"]

  labels: dict[str, dict[str, LabelResult]] = {}
  for name in sorted({name for record in records for name in record["labels"]}):
    labels[name] = {}
    for value in sorted({record["labels"].get(name, "") for record in records}):

      def has_value(record, name=name, value=value) -> bool:
        return record["labels"].get(name, "") == value

      labels[name][value] = LabelResult(
        count=sum(map(has_value, records)),
        share=share(has_value, everything),
        accuracy=share(is_correct, has_value),
      )
  return Evaluation(
    task=task,
    num_examples=len(examples),
    num_samples=len(records),
    accuracy=share(is_correct, everything),
    finished=share(lambda record: record["finish"] == "stop", everything),
    mean_num_tokens=sum(record["num_tokens"] for record in records) / len(records),
    labels=labels,
  )


def write_report(
  out_dir: str | os.PathLike,
  evaluation: Evaluation,
  examples: Sequence[Example],
  records: Mapping[tuple[int, int], Mapping[str, Any]],
  num_transcripts: int,
) -> None:
  """Writes results.json and transcripts.md."""
  out_dir = Path(out_dir)
  write_json(out_dir / "results.json", _to_json(evaluation))
  # Half of them wrong and half right, where there are enough of each.
  ordered = [records[path] for path in sorted(records)]
  wrong = [record for record in ordered if not record["correct"]]
  right = [record for record in ordered if record["correct"]]
  num_wrong = max(num_transcripts - num_transcripts // 2, num_transcripts - len(right))
  wrong = wrong[:num_wrong]
  shown = wrong + right[: num_transcripts - len(wrong)]
  parts = [f"# {evaluation.task}\n\n{evaluation.table()}\n"]
  parts += [_transcript(examples[record["example"]], record) for record in shown]
  write_atomic(out_dir / "transcripts.md", "\n".join(parts))


def _transcript(example: Example, record: Mapping[str, Any]) -> str:
  verdict = "right" if record["correct"] else "wrong"
  labels = "".join(f", {name} = {value}" for name, value in record["labels"].items())
  turns = [*example.messages, {"role": "assistant", "content": record["response"]}]
  # A fence longer than any run of backticks inside, so that nothing closes it early.
  fence = "`" * max(3, *(_longest_run(turn["content"]) + 1 for turn in turns))
  shown = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
  return (
    f"## {record['id']}, sample {record['sample']}: {verdict} "
    f"(reference {example.reference}, {record['finish']} after "
    f"{record['num_tokens']} tokens{labels})\n\n{fence}text\n{shown}\n{fence}\n"
  )


def _longest_run(text: str) -> int:
  longest = current = 0
  for character in text:
    current = current + 1 if character == "`" else 0
    longest = max(longest, current)
  return longest


def _to_json(value: Any) -> Any:
  if isinstance(value, Interval):
    return value._asdict()
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = dataclasses.fields(value)
    return {field.name: _to_json(getattr(value, field.name)) for field in fields}
  if isinstance(value, Mapping):
    return {key: _to_json(item) for key, item in value.items()}
  return value
