"""Which documents are dropped as duplicates, and what is said of them."""

import random
import re

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation import minhash_shingles
from phi4_jax.curation.dedup import DropExactDuplicates, DropNearDuplicates
from phi4_jax.curation.steps import CorpusStep, Drop
from phi4_jax.data.documents import Document


def judge(step, documents):
  make_key = step.make_key()
  return list(step.judge_keys(make_key(d) for d in documents))


def texts(*contents):
  return [Document(id=str(i), text=text) for i, text in enumerate(contents)]


def chat(*contents):
  roles = ["user", "assistant"] * len(contents)
  messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
  return Document(id="chat", messages=tuple(messages))


def story(rng, words=200):
  return [f"w{rng.randrange(5000)}" for _ in range(words)]


def edit(rng, words, count):
  words = list(words)
  for place in rng.sample(range(len(words)), count):
    words[place] = f"x{rng.randrange(10**9)}"
  return words


def test_both_are_steps_with_recipes():
  for step in (DropExactDuplicates(), DropNearDuplicates()):
    assert isinstance(step, CorpusStep)
    assert step.recipe()["step"] == type(step).__name__
  assert DropNearDuplicates(seed=1).recipe() != DropNearDuplicates().recipe()
  assert "rensa" in DropNearDuplicates().recipe()


@pytest.mark.parametrize(
  "normalisation, dropped",
  [("none", [4]), ("whitespace", [1, 4]), ("words", [1, 2, 3, 4])],
)
def test_exact_duplicates_after_normalisation(normalisation, dropped):
  documents = texts("a b", "\r\na \t b \n", "A  b!", "a - b", "a b", "a c")
  verdicts = judge(DropExactDuplicates(normalisation=normalisation), documents)
  assert [i for i, v in enumerate(verdicts) if v] == dropped
  for verdict in filter(None, verdicts):
    assert verdict == Drop("exact_duplicate", "the same as #0")


PROGRAM = "if a:\n  b()\n\n  c()\n"


@pytest.mark.parametrize(
  "other, same",
  [
    ("if a:\n  b()\n\nc()\n", False),
    ("if a:\n\tb()\n\n\tc()\n", False),
    ("if a:\n  b()\n  c()\n", False),
    ("if a: b()\n\n  c()\n", False),
    ("  if a:\n  b()\n\n  c()\n", False),
    ("\n \nif  a:\r\n  b() \r\n\t\r\n  c()", True),
  ],
)
def test_blanks_that_a_program_is_told_by_are_a_difference(other, same):
  (_, verdict) = judge(DropExactDuplicates(), texts(PROGRAM, other))
  assert (verdict is not None) == same


def test_texts_without_a_word_are_compared_as_they_are():
  documents = texts(
    "\u2211\u222b \u2192 \u221e",
    "+ - * /",
    "\U0001f600",
    "",
    "...",
    "+ - * /",
    "+  - * /",
    "",
  )
  verdicts = judge(DropExactDuplicates(normalisation="words"), documents)
  assert [v.detail if v else None for v in verdicts] == [
    None, None, None, None, None, "the same as #1", None, "the same as #3",
  ]  # fmt: skip
  # What has no word is no hash of what has one.
  hashes = minhash_shingles.hash_words("a b").tobytes()
  step = DropExactDuplicates(normalisation="words")
  assert step._normalise("...") == b"text:..." and step._normalise("a b")[5:] == hashes


def test_a_text_a_conversation_and_bytes_are_three_things():
  documents = [
    *texts("ab"),
    chat("ab"),
    Document(id="x", data=b"ab"),
    chat("a", "bc"),
    chat("ab", "c"),
    chat("ab"),
    Document(id="y", data=b"ab", media_type="text/html"),
  ]
  verdicts = judge(DropExactDuplicates(), documents)
  assert [v.detail if v else None for v in verdicts] == [
    None, None, None, None, None, "the same as #1", "the same as #2",
  ]  # fmt: skip


def test_no_document_is_no_verdict():
  assert judge(DropExactDuplicates(), []) == []
  assert judge(DropNearDuplicates(), []) == []


def test_near_duplicates_are_found_and_others_kept():
  rng = random.Random(0)
  originals = [story(rng) for _ in range(40)]
  # Two of 200 words changed: at most 10 of 196 shingles, an index of 0.90 or more.
  copies = [edit(rng, words, 2) for words in originals[:20]]
  step = DropNearDuplicates(threshold=0.7)
  verdicts = judge(step, texts(*(" ".join(w) for w in originals + copies)))
  assert verdicts[:40] == [None] * 40
  for i, verdict in enumerate(verdicts[40:]):
    assert verdict is not None and verdict.reason == "near_duplicate"
    found = re.fullmatch(r"like #(\d+), estimated Jaccard (0\.\d\d)", verdict.detail)
    assert found and int(found.group(1)) == i
    a, b = (step.make_shingles(" ".join(w)) for w in (originals[i], copies[i]))
    # Five standard errors of an estimate from 128 numbers.
    assert abs(float(found.group(2)) - minhash_shingles.jaccard(a, b)) < 0.2


def test_the_first_stays_wherever_its_copies_lie():
  rng = random.Random(1)
  one, two = (" ".join(story(rng)) for _ in range(2))
  verdicts = judge(DropNearDuplicates(), texts("", two, one, "", two, one.upper(), one))
  assert [v.detail.split(",")[0] if v else None for v in verdicts] == [
    None, None, None, None, "like #1", "like #2", "like #2",
  ]  # fmt: skip


def test_a_chain_hangs_together_and_says_so():
  rng = random.Random(2)
  words = story(rng, 400)
  chain = [words]
  for _ in range(12):
    chain.append(edit(rng, chain[-1], 6))
  verdicts = judge(DropNearDuplicates(threshold=0.7), texts(*map(" ".join, chain)))
  assert verdicts[0] is None
  assert all(v and v.detail.startswith("like #0,") for v in verdicts[1:])
  last = verdicts[-1]
  assert last is not None and last.detail.endswith("through others between them")


def test_short_documents_equal_their_own_copies_only():
  documents = texts("Yes.", "yes", "Yes, sir.", "no", "one two three four", "?!", "")
  verdicts = judge(DropNearDuplicates(), documents)
  assert [bool(v) for v in verdicts] == [False, True] + [False] * 5


def test_characters_see_what_words_do_not():
  a = "Die Donaudampfschifffahrtsgesellschaft besitzt viele Schiffe auf dem Fluss."
  b = a.replace("besitzt", "besitzet")
  by_words = DropNearDuplicates(threshold=0.6)
  by_characters = DropNearDuplicates(
    threshold=0.6, shingles="characters", shingle_size=6
  )
  assert judge(by_words, texts(a, b)) == [None, None]
  assert judge(by_characters, texts(a, b))[1] is not None


def test_conversations_are_compared_and_bytes_are_not():
  words = " ".join(story(random.Random(3)))
  documents = [chat("hi", words), chat("hi", words), Document(id="x", data=b"PK")]
  verdicts = judge(DropNearDuplicates(), documents)
  assert [v.reason if v else None for v in verdicts] == [
    None, "near_duplicate", "not_extracted",
  ]  # fmt: skip


def test_keys_are_small_and_do_not_depend_on_the_others():
  step = DropNearDuplicates(num_permutations=64)
  (document,) = texts("to be or not to be that is the question")
  key = step.make_key()(document)
  assert len(key) == 256 == len(step.make_key()(document))
  assert key == step.make_key()(document)
  with pytest.raises(DataError, match="Key #1 has 512 bytes"):
    list(step.judge_keys([key, key + key]))


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"threshold": 1.0}, r"threshold \(1.0\)"),
    ({"candidate_recall": 0.0}, r"candidate_recall \(0.0\)"),
    ({"shingle_size": 0}, r"shingle_size \(0\)"),
    ({"bucket_pairs": 0}, r"bucket_pairs \(0\)"),
    ({"num_permutations": 8}, r"num_permutations \(8\)"),
    ({"seed": -1}, r"seed \(-1\)"),
    ({"threshold": 0.05, "num_permutations": 16}, "too small"),
  ],
)
def test_settings_that_cannot_be(settings, message):
  with pytest.raises(ConfigError, match=message):
    DropNearDuplicates(**settings)
