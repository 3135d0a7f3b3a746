"""Small Hugging Face tokenizer folders, made here: no test needs a download."""

import functools
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from phi4_jax.data.sentencepiece_files import added_token

# Phi-4's template as it was first released, after the description of it: each
# message of a user is followed by the header of an answer.
PHI4_ORIGINAL = (
  "{% for message in messages %}{% if (message['role'] == 'system') %}"
  "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
  "{% elif (message['role'] == 'user') %}"
  "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>"
  "<|im_start|>assistant<|im_sep|>'}}"
  "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|im_end|>'}}"
  "{% endif %}{% endfor %}"
)
# The mended one: the header is written where it is asked for.
PHI4_FIXED = (
  "{% for message in messages %}"
  "{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + "
  "'<|im_end|>'}}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
CHATML_WITH_SYSTEM = (
  "{% for message in messages %}"
  "{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a test.<|im_end|>\n' }}{% endif %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3_TEMPLATE = (
  "{% for message in messages %}"
  "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
  "{% else %}{{ eos_token }}{% endif %}"
)
PHI4_MINI_TEMPLATE = PHI3_TEMPLATE.replace("|>\n", "|>")
LLAMA3_TEMPLATE = (
  "{% for message in messages %}{% set content = '<|start_header_id|>' + "
  "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + "
  "'<|eot_id|>' %}"
  "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
  "{{ content }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

PHI4_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>")
PHI3_CONTROLS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
LLAMA3_CONTROLS = (
  "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
  "<|eot_id|>",
)  # fmt: skip
_TEXTS = (
  "the cat sat on the mat, and the dog sat on the log. " * 3,
  "def f(x):\n    return x + 1\n\n\nfor i in range(10):\n    print(i)\n" * 3,
  "na\u00efve caf\u00e9 \u4f60\u597d \u4f60\u597d \U0001f600\U0001f600 system user",
)


@functools.cache
def _trained() -> str:
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(_TEXTS, trainer)
  return tokenizer.to_str()


def byte_level_document(controls=PHI4_CONTROLS, *, first_id=None, plain=()):
  """Returns a tokenizer.json: a small BPE, and special tokens behind its own.

  Args:
    controls: names of special tokens.
    first_id: id of the first of them; by default that behind the last token.
    plain: names of tokens that are added and not special.
  """
  document = json.loads(_trained())
  start = len(document["model"]["vocab"]) if first_id is None else first_id
  document["added_tokens"] = [
    added_token(start + i, name, special=name in controls)
    for i, name in enumerate([*controls, *plain])
  ]
  return document


def write_folder(path: Path, document=None, *, template=None, **settings) -> Path:
  """Writes tokenizer.json and tokenizer_config.json; returns the folder."""
  path.mkdir(parents=True, exist_ok=True)
  document = byte_level_document() if document is None else document
  (path / "tokenizer.json").write_text(json.dumps(document))
  if template is not None:
    settings["chat_template"] = template
  (path / "tokenizer_config.json").write_text(json.dumps(settings))
  return path
