"""Fill-in-the-middle: a text is cut in three and its middle is moved to the end.

A part of all texts, chosen by their ids, is written in one of two orders:

  PSM   <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle eos
  SPM   <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle eos

The three parts are encoded each on its own, and every token counts in the loss, as in
an ordinary text. What is done to a text depends on its id, the seed and nothing else.

Source: arXiv:2207.14255 (Bavarian et al. 2022): cuts at two characters drawn
uniformly (section 3), the orders and the share of each (3.1, the SPM of its second
variant), the loss on all three parts.
Differs: arXiv:2412.08905 gives no rate and names no fill-in-the-middle in pretraining;
phi-4's tokenizer has the three tokens. The rate and the share are those of
arXiv:2207.14255. Texts are cut before packing only ("document level").
"""

import dataclasses
import hashlib
import random

import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.chat import EncodedDocument, encode_document
from phi4_jax.data.documents import Document
from phi4_jax.data.vocabularies import Vocabulary

PREFIX, MIDDLE, SUFFIX = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FillInMiddleConfig:
  """Which texts are cut, and how.

  Attributes:
    rate: share of the texts that are cut; 0 to 1. Conversations never are.
    spm_share: of these, the share in the order SPM; the others are PSM.
    seed: another seed chooses and cuts otherwise.
  """

  rate: float = 0.5
  spm_share: float = 0.5
  seed: int = 0

  def __post_init__(self):
    for name in ("rate", "spm_share"):
      if not 0 <= getattr(self, name) <= 1:
        raise ConfigError(
          f"FillInMiddleConfig.{name} ({getattr(self, name)}) must lie in 0 to 1."
        )
    if self.seed < 0:
      raise ConfigError(f"FillInMiddleConfig.seed ({self.seed}) must be 0 or more.")


def require_tokens(vocabulary: Vocabulary) -> tuple[int, int, int]:
  """Returns the ids of prefix, middle and suffix.

  Raises:
    ConfigError: if the vocabulary lacks one.
  """
  specials = vocabulary.specials
  missing = [name for name in (PREFIX, MIDDLE, SUFFIX) if name not in specials]
  if missing:
    raise ConfigError(
      f"Fill-in-the-middle needs the special token {missing[0]}, which this vocabulary "
      "does not have. Use phi-4's or one that `phi4 train_tokenizer` made, or leave "
      "DatasetConfig.fill_in_middle out."
    )
  return specials[PREFIX], specials[MIDDLE], specials[SUFFIX]


def cut_text(
  document_id: str, text: str, config: FillInMiddleConfig
) -> tuple[str, str, str, bool] | None:
  """Returns (prefix, middle, suffix, whether SPM), or None for a text left whole.

  >>> cut_text("a:1", "abcdef", FillInMiddleConfig(rate=1.0, seed=1))
  ('a', 'bcdef', '', True)
  """
  digest = hashlib.sha256(f"{config.seed}\0{document_id}".encode()).digest()
  rng = random.Random(int.from_bytes(digest[:8], "big"))
  chosen, order, first, second = (rng.random() for _ in range(4))
  if chosen >= config.rate:
    return None
  cuts = sorted(int(draw * (len(text) + 1)) for draw in (first, second))
  parts = text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]
  return (*parts, order < config.spm_share)


def encode_with_middle_moved(
  document: Document, vocabulary: Vocabulary, config: FillInMiddleConfig
) -> EncodedDocument:
  """Encodes a document as `chat.encode_document`, or with its middle at the end.

  Raises:
    ConfigError: if the vocabulary has no tokens for it.
    DataError: naming the document, if it cannot be encoded.
  """
  prefix_id, middle_id, suffix_id = require_tokens(vocabulary)
  cut = None
  if document.text is not None:
    cut = cut_text(document.id, document.text, config)
  if cut is None:
    return encode_document(document, vocabulary)
  *parts, is_spm = cut
  try:
    prefix, middle, suffix = (vocabulary.encode(part) for part in parts)
  except DataError as error:
    raise DataError(f"Document {document.id}: {error}") from error
  if is_spm:
    ids = [prefix_id, suffix_id, *suffix, middle_id, *prefix, *middle]
  else:
    ids = [prefix_id, *prefix, suffix_id, *suffix, middle_id, *middle]
  token_ids = np.asarray([*ids, vocabulary.eos_id], np.int32)
  return EncodedDocument(document.id, token_ids, np.ones(len(token_ids), bool))
