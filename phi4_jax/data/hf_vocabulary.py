"""Taking a vocabulary from a Hugging Face folder.

The folder's tokenizer files are copied, so that the vocabulary can go back, and
`vocabulary.json` says what follows from them: the special tokens, the chat format, and
where an answer ends. Nothing about any one model is assumed: tokens are looked up by
name, and ids are those of the files.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_json, write_json
from phi4_jax.data import tokenizer_json
from phi4_jax.data.chat_formats import ChatFormat
from phi4_jax.data.chat_templates import choose_chat_format, name_chat_format
from phi4_jax.data.documents import ROLES
from phi4_jax.data.sentencepiece_files import read_sentencepiece_model
from phi4_jax.data.tokenizers_vocabulary import TokenizersVocabulary

__all__ = ["TokenizersVocabulary", "import_hf_tokenizer", "write_vocabulary_folder"]

# Kept beside tokenizer.json, for the way back.
_COMPANIONS = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
  "chat_template.jinja",
  "chat_template.json",
)
# What closes a text; the eos of a chat model often closes a turn instead.
_ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")

_log = logging.getLogger(__name__)


def import_hf_tokenizer(
  src: str | Path,
  out: str | Path,
  *,
  vocab_size: int,
  config: Mapping[str, Any],
  generation_config: Mapping[str, Any] | None = None,
  chat_format: str | None = None,
) -> TokenizersVocabulary:
  """Writes the vocabulary folder of a model in Hugging Face format.

  Args:
    src: folder with tokenizer.json, or a SentencePiece tokenizer.model.
    out: the vocabulary folder to write.
    vocab_size: rows of the model's embedding.
    config: the model's config.json, for its eos_token_id.
    generation_config: the model's generation_config.json, if it has one.
    chat_format: name of a known chat format, instead of that of the template.

  Raises:
    DataError: if there is no usable tokenizer, it has ids beyond the embedding, or
      its chat template writes none of the known formats.
  """
  src, out = Path(src), Path(out)
  document, changed = _read_tokenizer(src)
  settings = _read_if_there(src / "tokenizer_config.json")
  changed |= _add_declared_tokens(document, settings, src)
  named = {**_read_if_there(src / "special_tokens_map.json"), **settings}
  tokens = {name: _content(named.get(name)) for name in _TOKEN_NAMES}
  declared = [
    token_id
    for source in (generation_config or {}, config)
    for token_id in _as_list(source.get("eos_token_id"))
  ]
  out.mkdir(parents=True, exist_ok=True)
  for name in _COMPANIONS:
    if (src / name).is_file():
      shutil.copyfile(src / name, out / name)
  if not changed:
    shutil.copyfile(src / "tokenizer.json", out / "tokenizer.json")
  return write_vocabulary_folder(
    out,
    document if changed else None,
    template=_find_template(src, settings),
    tokens=tokens,
    stop_ids=declared,
    vocab_size=vocab_size,
    chat_format=chat_format,
    where=str(src),
  )


def write_vocabulary_folder(
  out: Path,
  document: Mapping[str, Any] | None,
  *,
  template: str | None,
  tokens: Mapping[str, str | None],
  stop_ids: Iterable[int],
  vocab_size: int,
  chat_format: str | None,
  where: str,
) -> TokenizersVocabulary:
  """Writes tokenizer.json and vocabulary.json, and loads what was written.

  Args:
    out: the folder.
    document: the tokenizer, or None where out has its tokenizer.json already.
    template: chat template, or None for a base model.
    tokens: the contents of bos_token, eos_token, pad_token, unk_token.
    stop_ids: ids at which the model's own settings end an answer.
    vocab_size: rows of the model's embedding.
    chat_format: name of a known chat format, instead of that of the template.
    where: the source, for messages.

  Raises:
    DataError: as `import_hf_tokenizer`.
  """
  if document is None:
    document = tokenizer_json.read_tokenizer_json(out / "tokenizer.json")
  else:
    write_json(out / "tokenizer.json", document)
  _check_ids(document, vocab_size, where)
  added = tokenizer_json.added_tokens(document)
  ids = {entry["content"]: entry["id"] for entry in added}
  chat: ChatFormat | None = None
  if chat_format is not None:
    chat = name_chat_format(chat_format, names=set(ids), tokens=tokens, where=where)
  elif template is not None:
    chat, warning = choose_chat_format(
      template, names=set(ids), tokens=tokens, where=where
    )
    if warning:
      _log.warning("%s", warning)
  controls = chat.control_names(ROLES) if chat else set()
  chat = _with_strips(chat, added, controls)
  eos_id = _end_of_text(document, ids, tokens, where)
  specials = {
    entry["content"]: entry["id"]
    for entry in sorted(added, key=lambda entry: entry["id"])
    if entry.get("special") or entry["content"] in controls or entry["id"] == eos_id
  }
  stops = [eos_id, *stop_ids, ids.get(tokens.get("eos_token") or "", eos_id)]
  if chat:
    stops.insert(0, ids[chat.turn_end])
  outside = sorted({i for i in stops if not 0 <= i < vocab_size})
  if outside:
    _log.warning(
      "%s declares the eos ids %s, which are outside of the embedding (%d rows): the "
      "model cannot end an answer there, and they are left out.",
      where,
      outside,
      vocab_size,
    )
  chat_record = chat.to_json() if chat else None
  fingerprint = tokenizer_json.fingerprint_tokenizer(document, eos_id, chat_record)
  write_json(
    out / "vocabulary.json",
    {
      "kind": "tokenizers",
      "size": tokenizer_json.highest_id(document) + 1,
      "fingerprint": fingerprint,
      "eos_id": eos_id,
      "stop_ids": [i for i in dict.fromkeys(stops) if i not in outside],
      "chat": chat_record,
      "specials": specials,
    },
  )
  return TokenizersVocabulary(out)


def _read_tokenizer(src: Path) -> tuple[dict[str, Any], bool]:
  """Returns the tokenizer, and whether it is another than src/tokenizer.json."""
  if (src / "tokenizer.json").is_file():
    return tokenizer_json.read_tokenizer_json(src / "tokenizer.json"), False
  if (src / "tokenizer.model").is_file():
    return read_sentencepiece_model(src / "tokenizer.model"), True
  found = sorted(path.name for path in src.iterdir()) if src.is_dir() else []
  raise DataError(
    f"{src} has no tokenizer.json and no tokenizer.model (found: "
    f"{', '.join(found[:12]) or 'nothing'}). Save the tokenizer with transformers: "
    "AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes tokenizer.json."
  )


def _read_if_there(path: Path) -> dict[str, Any]:
  return read_json(path) if path.is_file() else {}


def _content(token: Any) -> str | None:
  return token.get("content") if isinstance(token, Mapping) else token


def _as_list(value: Any) -> list[int]:
  return [] if value is None else list(value) if isinstance(value, list) else [value]


def _add_declared_tokens(
  document: dict[str, Any], settings: Mapping[str, Any], src: Path
) -> bool:
  """Adds the tokens that only tokenizer_config.json names; says if there were any."""
  added = tokenizer_json.added_tokens(document)
  known = {entry["id"]: entry["content"] for entry in added}
  missing = []
  for key, entry in settings.get("added_tokens_decoder", {}).items():
    token_id, content = int(key), entry["content"]
    if known.get(token_id, content) != content:
      raise DataError(
        f"Id {token_id} is {known[token_id]!r} in {src}/tokenizer.json and "
        f"{content!r} in tokenizer_config.json. Make the two files agree."
      )
    if token_id not in known:
      missing.append({
        "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": False, **entry, "id": token_id,
      })  # fmt: skip
  document["added_tokens"] = sorted(added + missing, key=lambda entry: entry["id"])
  return bool(missing)


def _find_template(src: Path, settings: Mapping[str, Any]) -> str | None:
  if (src / "chat_template.jinja").is_file():
    return (src / "chat_template.jinja").read_text("utf-8")
  template = settings.get("chat_template")
  if template is None:
    template = _read_if_there(src / "chat_template.json").get("chat_template")
  if isinstance(template, list):  # several, by name
    named = {entry["name"]: entry["template"] for entry in template}
    if "default" not in named:
      raise DataError(
        f"{src} has the chat templates {', '.join(named)}, and none is named "
        "'default'. Name the format to use instead (--chat_format=NAME)."
      )
    return named["default"]
  return template


def _check_ids(document: Mapping[str, Any], vocab_size: int, where: str) -> None:
  highest = tokenizer_json.highest_id(document)
  if highest >= vocab_size:
    raise DataError(
      f"The vocabulary of {where} is larger than the embedding: it has ids up to "
      f"{highest}, and the model has vocab_size {vocab_size}. The tokenizer is that of "
      "another model, or tokens were added without resizing the embedding."
    )


def _with_strips(
  chat: ChatFormat | None, added: list[dict[str, Any]], controls: set[str]
) -> ChatFormat | None:
  """Notes which control tokens swallow white space, as their entries say."""
  if chat is None:
    return None
  used = [entry for entry in added if entry["content"] in controls]
  before = [entry["content"] for entry in used if entry.get("lstrip")]
  if before:
    raise DataError(
      f"The tokens {', '.join(before)} of the chat format {chat.name!r} swallow the "
      "white space before them (lstrip), which is not supported."
    )
  after = sorted(entry["content"] for entry in used if entry.get("rstrip"))
  return ChatFormat(**{**vars(chat), "rstrip": tuple(after)})


def _end_of_text(
  document: Mapping[str, Any],
  ids: Mapping[str, int],
  tokens: Mapping[str, str | None],
  where: str,
) -> int:
  for name in (*_ENDS_OF_TEXT, tokens.get("eos_token") or ""):
    if name in ids:
      return ids[name]
  raise DataError(
    f"The vocabulary of {where} has no token that ends a text: none of "
    f"{', '.join(_ENDS_OF_TEXT)}, and its eos_token is "
    f"{json.dumps(tokens.get('eos_token'))}. Set eos_token in tokenizer_config.json to "
    "one of its added tokens."
  )
