import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.eval.exchange import (
  check_settings,
  decode_response,
  encode_prompts,
  fingerprint_examples,
)
from phi4_jax.eval.tasks.arithmetic import ArithmeticTask, ArithmeticTaskConfig

VOCABULARY = ByteVocabulary()
TASK = ArithmeticTask(ArithmeticTaskConfig())


def test_prompts_are_the_chat_format():
  examples = TASK.examples(3)
  prompts = encode_prompts(TASK, examples, VOCABULARY, 64)
  assert prompts == [encode_prompt(e.messages, VOCABULARY) for e in examples]
  longest = max(map(len, prompts))
  assert len(encode_prompts(TASK, examples, VOCABULARY, longest + 1)) == 3
  with pytest.raises(ConfigError, match=rf"has {longest} tokens.*Raise it"):
    encode_prompts(TASK, examples, VOCABULARY, longest)


def test_only_a_stop_token_is_left_out():
  ids = VOCABULARY.encode("abc")
  assert decode_response([*ids, VOCABULARY.im_end_id], "stop", VOCABULARY) == "abc"
  assert decode_response(ids, "length", VOCABULARY) == "abc"
  assert decode_response([], "length", VOCABULARY) == ""
  assert decode_response([ids[0], 999, ids[1]], "length", VOCABULARY) == "a\ufffdb"


def test_fingerprint():
  assert fingerprint_examples(TASK.examples(3)) != fingerprint_examples(
    TASK.examples(2)
  )


def test_settings_are_written_once_and_compared(tmp_path):
  check_settings(tmp_path, {"n": 1}, what="a thing", log="log")
  (tmp_path / "log").write_text("")
  check_settings(tmp_path, {"n": 1}, what="a thing", log="log")
  with pytest.raises(ConfigError, match="holds a thing with other .*now.: n: 1 -> 2"):
    check_settings(tmp_path, {"n": 2}, what="a thing", log="log")
  (tmp_path / "settings.json").unlink()
  with pytest.raises(DataError, match="holds log without settings.json"):
    check_settings(tmp_path, {"n": 1}, what="a thing", log="log")
