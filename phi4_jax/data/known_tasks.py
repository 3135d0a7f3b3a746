"""Question sets by name: where each is published, and what its rows look like.

The names are those of `phi4 materialize --list`. A set `gsm8k` gives two tasks:
`gsm8k_sft` (a user's question and an assistant's answer; only the answer counts in
the loss) and `gsm8k_text` ("Question: ... Answer: ..." as a text).

Source: arXiv:2412.08905 Appendix B, the 20 benchmarks that training data is kept clean
of; `in_paper` marks them. Differs: phibench and mcphi are Microsoft's own and not
public.
"""

import dataclasses
from collections.abc import Mapping

from phi4_jax.common.errors import ConfigError
from phi4_jax.data import known_rows as rows

FORMS = {"sft": "chat", "text": "text"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownTask:
  """A published question set.

  Attributes:
    name: ours.
    read: makes an item of a row.
    columns: the fields that `read` looks at; nothing else is read of a table.
    huggingface: its name on the Hugging Face hub.
    config: of several configurations there, the one that is meant.
    tfds: its name in TFDS, with the configuration behind a slash; "" if it has none.
    sizes: rows by split, as published. The first split is what one trains on.
    scored: the split that a benchmark's score is of.
    license: as its publisher states it; "unknown" where none is stated. Read it before
      you use the data.
    in_paper: whether the paper decontaminates against it.
  """

  name: str
  read: rows.ReadRow
  columns: tuple[str, ...]
  huggingface: str
  config: str = ""
  tfds: str = ""
  sizes: Mapping[str, int]
  scored: str = "test"
  license: str
  in_paper: bool = True

  @property
  def first_split(self) -> str:
    return next(iter(self.sizes))

  @property
  def answer_fields(self) -> tuple[str, ...]:
    """The fields of which one holds the answer; () for prompts without any."""
    return tuple(name for name in self.columns if name in rows.ANSWER_FIELDS)


def _choice(name: str, read: rows.ReadRow, columns: str, **where) -> KnownTask:
  return KnownTask(name=name, read=read, columns=tuple(columns.split()), **where)


_CHOICES = "id question question_stem choices answerKey"
_TASKS = (
  KnownTask(
    name="gsm8k",
    read=rows.question_and_answer("question", "answer"),
    columns=("question", "answer"),
    huggingface="openai/gsm8k",
    config="main",
    tfds="gsm8k",
    sizes={"train": 7473, "test": 1319},
    license="MIT",
  ),
  KnownTask(
    name="math",
    read=rows.question_and_answer("problem", "solution"),
    columns=("problem", "solution"),
    huggingface="EleutherAI/hendrycks_math",
    sizes={"train": 7500, "test": 5000},
    license="MIT",
  ),
  _choice(
    "mmlu",
    rows.read_listed,
    "question choices answer",
    huggingface="cais/mmlu",
    config="all",
    sizes={"auxiliary_train": 99842, "dev": 285, "validation": 1531, "test": 14042},
    license="MIT",
  ),
  _choice(
    "mmlu_pro",
    rows.read_listed,
    "question_id question options answer answer_index",
    huggingface="TIGER-Lab/MMLU-Pro",
    sizes={"validation": 70, "test": 12032},
    license="MIT",
  ),
  _choice(
    "arc_easy",
    rows.read_labelled,
    _CHOICES,
    huggingface="allenai/ai2_arc",
    config="ARC-Easy",
    tfds="ai2_arc/ARC-Easy",
    sizes={"train": 2251, "validation": 570, "test": 2376},
    license="CC-BY-SA-4.0",
  ),
  _choice(
    "arc_challenge",
    rows.read_labelled,
    _CHOICES,
    huggingface="allenai/ai2_arc",
    config="ARC-Challenge",
    tfds="ai2_arc/ARC-Challenge",
    sizes={"train": 1119, "validation": 299, "test": 1172},
    license="CC-BY-SA-4.0",
  ),
  KnownTask(
    name="trivia_qa",
    read=rows.question_and_answer("question", "answer.value"),
    columns=("question", "question_id", "answer"),
    huggingface="mandarjoshi/trivia_qa",
    config="rc.nocontext",
    tfds="trivia_qa/rc.nocontext",
    sizes={"train": 138384, "validation": 17944, "test": 17210},
    scored="validation",
    license="unknown",
    in_paper=False,
  ),
  KnownTask(
    name="humaneval",
    read=rows.question_and_answer("prompt", "canonical_solution"),
    columns=("task_id", "prompt", "canonical_solution"),
    huggingface="openai/openai_humaneval",
    sizes={"test": 164},
    license="MIT",
  ),
  KnownTask(
    name="mbpp",
    read=rows.question_and_answer("text|prompt", "code"),
    columns=("task_id", "text", "prompt", "code"),
    huggingface="google-research-datasets/mbpp",
    config="full",
    sizes={"train": 374, "test": 500, "validation": 90, "prompt": 10},
    license="CC-BY-4.0",
  ),
  _choice(
    "hellaswag",
    rows.read_hellaswag,
    "ctx context endings label source_id",
    huggingface="Rowan/hellaswag",
    tfds="hellaswag",
    sizes={"train": 39905, "validation": 10042, "test": 10003},
    scored="validation",
    license="MIT",
  ),
  _choice(
    "piqa",
    rows.read_piqa,
    "id goal sol1 sol2 label",
    huggingface="ybisk/piqa",
    config="plain_text",
    tfds="piqa",
    sizes={"train": 16113, "validation": 1838, "test": 3084},
    scored="validation",
    license="unknown",
  ),
  _choice(
    "openbookqa",
    rows.read_labelled,
    _CHOICES,
    huggingface="allenai/openbookqa",
    config="main",
    tfds="openbookqa",
    sizes={"train": 4957, "validation": 500, "test": 500},
    license="unknown",
  ),
  _choice(
    "commonsense_qa",
    rows.read_labelled,
    _CHOICES,
    huggingface="tau/commonsense_qa",
    sizes={"train": 9741, "validation": 1221, "test": 1140},
    scored="validation",
    license="MIT",
  ),
  _choice(
    "winogrande",
    rows.read_winogrande,
    "sentence option1 option2 answer label",
    huggingface="allenai/winogrande",
    config="winogrande_xl",
    tfds="winogrande",
    sizes={"train": 40398, "validation": 1267, "test": 1767},
    scored="validation",
    license="CC-BY",
  ),
  _choice(
    "medqa",
    rows.read_medqa,
    "question options answer answer_idx",
    huggingface="GBaker/MedQA-USMLE-4-options",
    sizes={"train": 10178, "test": 1273},
    license="MIT",
  ),
  KnownTask(
    name="gpqa",
    read=rows.read_gpqa,
    columns=(
      "Record ID",
      "Question",
      "Correct Answer",
      "Incorrect Answer 1",
      "Incorrect Answer 2",
      "Incorrect Answer 3",
    ),
    huggingface="Idavidrein/gpqa",
    config="gpqa_diamond",
    sizes={"train": 198},
    scored="train",
    license="CC-BY-4.0",
  ),
  _choice(
    "agieval",
    rows.read_agieval,
    "passage question options label answer",
    huggingface="ruixiangcui/AGIEval",
    sizes={"test": 8062},
    license="MIT",
  ),
  _choice(
    "arena_hard",
    rows.read_prompt,
    "question_id uid turns prompt",
    huggingface="lmarena-ai/arena-hard-auto",
    sizes={"test": 500},
    license="Apache-2.0",
  ),
  _choice(
    "mt_bench",
    rows.read_prompt,
    "question_id turns prompt",
    huggingface="HuggingFaceH4/mt_bench_prompts",
    sizes={"train": 80},
    scored="train",
    license="Apache-2.0",
  ),
)
KNOWN_TASKS: dict[str, KnownTask] = {task.name: task for task in _TASKS}
# Prompts without answers cannot be taught as chats.
_PROMPTS = ("arena_hard", "mt_bench")

# Several tasks by one name: each becomes a dataset, and DataConfig.datasets gives
# their weights. Differs: the paper names none of its fine-tuning sets.
KNOWN_MIXTURES: dict[str, tuple[str, ...]] = {
  "mathematics_sft": ("gsm8k_sft", "math_sft"),
  "commonsense_sft": (
    "arc_easy_sft",
    "arc_challenge_sft",
    "commonsense_qa_sft",
    "hellaswag_sft",
    "openbookqa_sft",
    "piqa_sft",
    "winogrande_sft",
  ),
}


def get_task(name: str) -> KnownTask:
  """Returns a question set.

  Raises:
    ConfigError: if there is none of this name; lists the known ones.
  """
  if name not in KNOWN_TASKS:
    raise ConfigError(
      f"There is no question set {name!r}. Known: {', '.join(KNOWN_TASKS)}."
    )
  return KNOWN_TASKS[name]


def task_names() -> list[str]:
  """Returns the names of all tasks: question set and form."""
  return [
    f"{name}_{form}"
    for name in KNOWN_TASKS
    for form in FORMS
    if form != "sft" or name not in _PROMPTS
  ]


def split_name(name: str) -> tuple[KnownTask, str] | None:
  """Returns the question set and form ("chat", "text") of a task, or None.

  >>> split_name("gsm8k_sft")[1]
  'chat'
  """
  if name not in task_names():
    return None
  known, _, form = name.rpartition("_")
  return KNOWN_TASKS[known], FORMS[form]
