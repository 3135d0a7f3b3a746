"""Key-value documents: their form, and that no two sources share an object."""

import json

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.data.key_values import NUM_WORDS, KeyValueSource, _word


def make(**changes):
  fields = {"num_documents": 6, "seed": 3, "min_pairs": 2, "max_pairs": 9}
  return KeyValueSource(**{**fields, **changes})


@pytest.mark.parametrize("style", ["word", "uuid"])
def test_an_exchange_answers_each_question_from_the_object(style):
  documents = list(make(num_queries=4, style=style).documents())
  assert documents == list(make(num_queries=4, style=style).documents())
  assert len({document.id for document in documents}) == 6
  sizes = set()
  for document in documents:
    first = document.messages[0]["content"]
    pairs = json.loads(first[first.index("{") : first.index("}") + 1])
    sizes.add(len(pairs))
    turns = list(zip(document.messages[::2], document.messages[1::2], strict=True))
    assert len(turns) == min(4, len(pairs))
    keys = []
    for user, assistant in turns:
      assert user["content"].endswith("\nCorresponding value:")
      key = json.loads(user["content"].rsplit("Key: ", 1)[1].split("\n")[0])
      assert assistant["content"] == pairs[key]
      keys.append(key)
    assert len(set(keys)) == len(keys)
    assert len(set(pairs) | set(pairs.values())) == 2 * len(pairs)
  assert sizes <= set(range(2, 10)) and len(sizes) > 1


def test_a_text_holds_the_object_twice():
  for document in make(form="text").documents():
    once, again = map(json.loads, document.text.splitlines())
    assert once == again and 2 <= len(once) <= 9
  assert list(once) != list(again)


def test_words_are_distinct_and_seeds_differ():
  assert len({_word(i) for i in range(NUM_WORDS)}) == NUM_WORDS == 2000
  assert list(make(seed=4).documents()) != list(make().documents())
  assert make().recipe() != make(seed=4).recipe()


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"num_documents": 0}, "num_documents"),
    ({"num_queries": 0}, "num_queries"),
    ({"min_pairs": 10}, r"min_pairs \(10\) must lie in \[1, max_pairs\]"),
    ({"max_pairs": 1001}, r"max_pairs \(1001\) must lie in \[1, 1000\]"),
    ({"seed": -1}, "KeyValueSource.seed"),
  ],
)
def test_settings(changes, why):
  with pytest.raises(ConfigError, match=why):
    make(**changes)
