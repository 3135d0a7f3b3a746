"""Fill-in-the-middle: nothing is lost, the order is right, and ids alone decide."""

import json

import numpy as np
import pytest
import seqio

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.chat import encode_document
from phi4_jax.data.documents import Document
from phi4_jax.data.fill_in_middle import (
  MIDDLE,
  PREFIX,
  SUFFIX,
  FillInMiddleConfig,
  cut_text,
  encode_with_middle_moved,
)
from phi4_jax.data.hf_vocabulary import import_hf_tokenizer
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.row_view import read_row
from phi4_jax.data.seqio_tasks import make_task, materialize_task
from phi4_jax.data.sources import JsonlSource
from phi4_jax.data.tokenizer import ByteVocabulary
from tests.data.tokenizer_folders import PHI4_FIXED, write_folder

V = ByteVocabulary()
PRE, MID, SUF = (V.specials[name] for name in (PREFIX, MIDDLE, SUFFIX))
ALWAYS = FillInMiddleConfig(rate=1.0)
TEXT = "def f(x):\n  return x + 1  # caf\u00e9 \U0001f600\n"


def parts(token_ids, *, spm):
  """Reads prefix, middle and suffix back out of ids, with the text between marks."""
  ids = token_ids.tolist()
  assert ids[-1] == V.eos_id and [ids.count(i) for i in (PRE, MID, SUF)] == [1, 1, 1]
  pre, mid, suf = (ids.index(i) for i in (PRE, MID, SUF))
  assert pre == 0 < suf < mid
  before, suffix, after = ids[1:suf], ids[suf + 1 : mid], ids[mid + 1 : -1]
  assert (before == []) if spm else True
  return [V.decode(part) for part in (before, suffix, after)]


@pytest.mark.parametrize("spm_share", [0.0, 1.0])
def test_the_three_parts_are_the_text(spm_share):
  config = FillInMiddleConfig(rate=1.0, spm_share=spm_share)
  for i in range(200):
    document = Document(id=f"a:{i}", text=TEXT)
    prefix, middle, suffix, is_spm = cut_text(document.id, TEXT, config)
    assert prefix + middle + suffix == TEXT and is_spm == (spm_share == 1)
    encoded = encode_with_middle_moved(document, V, config)
    before, between, after = parts(encoded.token_ids, spm=is_spm)
    assert between == suffix
    if is_spm:
      assert (before, after) == ("", prefix + middle)
    else:
      assert (before, after) == (prefix, middle)
    assert encoded.loss_mask.all() and encoded.loss_mask.dtype == bool
    assert len(encoded.token_ids) == len(V.encode(TEXT)) + 4


def test_rate_and_share_are_as_asked():
  config = FillInMiddleConfig(rate=0.4, spm_share=0.25, seed=3)
  cuts = [cut_text(f"f.jsonl:{i}", "x" * 50, config) for i in range(20_000)]
  chosen = [cut for cut in cuts if cut is not None]
  # Four standard errors of a share.
  assert abs(len(chosen) / len(cuts) - 0.4) < 4 * (0.4 * 0.6 / len(cuts)) ** 0.5
  spm = sum(cut[3] for cut in chosen) / len(chosen)
  assert abs(spm - 0.25) < 4 * (0.25 * 0.75 / len(chosen)) ** 0.5
  # Two uniform cuts of 50: each third has a third of the characters on average.
  for part in range(3):
    lengths = [len(cut[part]) for cut in chosen]
    error = np.std(lengths) / len(lengths) ** 0.5
    assert abs(np.mean(lengths) - 50 / 3) < 4 * error


def test_the_id_and_the_seed_decide():
  first = [cut_text(f"a:{i}", TEXT, ALWAYS) for i in range(20)]
  assert first == [cut_text(f"a:{i}", TEXT, ALWAYS) for i in range(20)]
  assert len(set(first)) > 10
  other = FillInMiddleConfig(rate=1.0, seed=1)
  assert first != [cut_text(f"a:{i}", TEXT, other) for i in range(20)]
  # What is chosen at a low rate is chosen at a higher one.
  low = FillInMiddleConfig(rate=0.2)
  few = {i for i in range(200) if cut_text(str(i), TEXT, low)}
  more = {i for i in range(200) if cut_text(str(i), TEXT, FillInMiddleConfig(rate=0.6))}
  assert few < more


def test_what_is_left_whole():
  never = FillInMiddleConfig(rate=0.0)
  document = Document(id="a:1", text=TEXT)
  plain = encode_document(document, V)
  found = encode_with_middle_moved(document, V, never)
  np.testing.assert_array_equal(found.token_ids, plain.token_ids)
  talk = Document(id="a:2", messages=({"role": "user", "content": "hi"},))
  found = encode_with_middle_moved(talk, V, ALWAYS)
  np.testing.assert_array_equal(found.token_ids, encode_document(talk, V).token_ids)
  empty = encode_with_middle_moved(Document(id="a:3", text=""), V, ALWAYS)
  assert sorted(empty.token_ids) == sorted([PRE, SUF, MID, V.eos_id])


def test_marks_in_a_text_are_characters():
  text = f"{PREFIX}{MIDDLE}{SUFFIX}"
  encoded = encode_with_middle_moved(Document(id="a:1", text=text), V, ALWAYS)
  assert [list(encoded.token_ids).count(i) for i in (PRE, MID, SUF)] == [1, 1, 1]


def test_a_vocabulary_without_the_tokens(tmp_path):
  source = write_folder(tmp_path / "s", template=PHI4_FIXED)
  vocabulary = import_hf_tokenizer(source, tmp_path / "v", vocab_size=400, config={})
  with pytest.raises(ConfigError, match=r"special token <\|fim_prefix\|>, which this"):
    encode_with_middle_moved(Document(id="a:1", text=TEXT), vocabulary, ALWAYS)
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "x"}')
  with pytest.raises(ConfigError, match="needs the special token"):
    make_task("none", JsonlSource(path=str(path)), vocabulary, fill_in_middle=ALWAYS)


def test_bad_settings_and_texts(toy_vocabulary):
  with pytest.raises(ConfigError, match="FillInMiddleConfig.rate .1.5. must lie"):
    FillInMiddleConfig(rate=1.5)
  with pytest.raises(ConfigError, match="FillInMiddleConfig.spm_share"):
    FillInMiddleConfig(spm_share=-0.1)
  with pytest.raises(ConfigError, match="FillInMiddleConfig.seed"):
    FillInMiddleConfig(seed=-1)
  with pytest.raises(DataError, match="Document z:1: .*no token for"):
    encode_with_middle_moved(Document(id="z:1", text="Zebra"), toy_vocabulary, ALWAYS)


def test_a_task_and_its_rows(tmp_path):
  path = tmp_path / "code.jsonl"
  path.write_text("\n".join(json.dumps({"text": TEXT + str(i)}) for i in range(20)))
  source = JsonlSource(path=str(path))
  make_task("fim", source, V, fill_in_middle=ALWAYS)
  try:
    with pytest.raises(ConfigError, match="'fim' exists already"):
      make_task("fim", source, V)
    packing = PackingConfig(row_length=80, strategy="single")
    manifest = materialize_task("fim", tmp_path / "o", vocabulary=V, packing=packing)
  finally:
    seqio.TaskRegistry.remove("fim")
  assert manifest.recipe["source"]["fill_in_middle"]["rate"] == 1.0
  rows = [read_row(tmp_path / "o", manifest, i) for i in range(20)]
  for i, (row, document) in enumerate(zip(rows, source.documents(), strict=True)):
    expected = encode_with_middle_moved(document, V, ALWAYS).token_ids
    np.testing.assert_array_equal(row[0][row[1] == 1], expected, err_msg=str(i))
