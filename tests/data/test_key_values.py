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


def test_reordering_asks_for_the_object_in_another_order():
  for document in make(form="reorder").documents():
    user, assistant = document.messages
    once = json.loads(user["content"].partition("\n\n")[2])
    again = json.loads(assistant["content"])
    assert once == again and 2 <= len(once) <= 9
    assert [user["role"], assistant["role"]] == ["user", "assistant"]
  assert list(once) != list(again)


@pytest.mark.parametrize("sign", [None, ":", '": "'])
def test_pairs_have_one_sign_or_none_between_key_and_value(sign):
  for document in make(form="pairs", sign=sign).documents():
    user, assistant = document.messages
    once = user["content"].partition("\n\n")[2].split(",")
    again = assistant["content"].split(",")
    assert sorted(once) == sorted(again) and 2 <= len(once) <= 9
    words = [word for pair in once for word in (pair[:3], pair[-3:])]
    assert all(pair[3:-3] == (sign or "") for pair in once)
    assert len(set(words)) == 2 * len(once)
  assert once != again


def test_forms_and_seeds_hold_other_objects():
  streams = {
    (form, seed): {
      str(sorted(json.loads(text[text.index("{") : text.index("}") + 1]).items()))
      for document in make(form=form, seed=seed, num_documents=200).documents()
      for text in [document.text or document.messages[0]["content"]]
    }
    for form in ("chat", "text", "reorder")
    for seed in (0, 1, 2)
  }
  assert sum(map(len, streams.values())) == len(set().union(*streams.values()))


def test_few_words_are_spread_over_all():
  documents = make(form="text", num_words=18, num_documents=50).documents()
  words = {word for d in documents for word in json.loads(d.text.splitlines()[0])}
  assert words <= {_word(111 * i) for i in range(18)} and len(words) == 18
  assert len({word[0] for word in words}) > 9


def test_words_are_distinct_and_seeds_differ():
  assert len({_word(i) for i in range(NUM_WORDS)}) == NUM_WORDS == 2000
  assert list(make(seed=4).documents()) != list(make().documents())
  assert make().recipe() != make(seed=4).recipe()
  # What was made before there were signs is still what its recipe says.
  assert "sign" not in make(form="pairs").recipe()
  assert make(form="pairs", sign=":").recipe()["sign"] == ":"


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"num_documents": 0}, "num_documents"),
    ({"num_queries": 0}, "num_queries"),
    ({"min_pairs": 10}, r"min_pairs \(10\) must lie in \[1, max_pairs\]"),
    ({"max_pairs": 1001}, r"max_pairs \(1001\) must lie in \[1, 1000\]"),
    ({"seed": -1}, "KeyValueSource.seed"),
    ({"form": "pairs", "sign": ""}, "or None for none"),
    ({"sign": ":"}, r"sign \(':'\) has no effect on form 'chat'"),
    ({"num_words": 17}, r"max_pairs \(9\) must lie in \[1, 8\].*num_words is 17"),
    ({"num_words": 2001}, r"KeyValueSource.num_words \(2001\) must lie in \[2, 2000\]"),
  ],
)
def test_settings(changes, why):
  with pytest.raises(ConfigError, match=why):
    make(**changes)
