"""phi4 chat: the conversation, the terminal with scripted input, the command itself."""

import io
import json
import os
import signal
import subprocess
import sys

import jax
import pytest

from experiments import chat, process
from experiments.chat_terminal import ChatTerminal, StopOnInterrupt
from experiments.conversation import ContextFullError, Conversation
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.data.chat import encode_chat, encode_prompt
from phi4_jax.model.transformer import init_params
from phi4_jax.sampling.generate import JaxSampler
from phi4_jax.sampling.stream import StreamedToken
from tests.experiments.untrained_runs import MODEL, VOCABULARY, make_model_run

END, EOS = VOCABULARY.im_end_id, VOCABULARY.eos_id


class ScriptedStream:
  """Answers in turn; an answer is a text, or ids."""

  def __init__(self, *answers, max_length=400, on_token=None):
    self.max_length = max_length
    self.calls = []
    self._answers = iter(answers)
    self._on_token = on_token

  def stream(self, prefix, key_path, *, max_new=None, should_stop=lambda: False):
    self.calls.append((list(prefix), tuple(key_path)))
    answer = next(self._answers)
    ids = [*VOCABULARY.encode(answer), END] if isinstance(answer, str) else answer
    room = min(max_new or self.max_length, self.max_length - len(prefix))
    for i, token_id in enumerate(ids[:room]):
      if should_stop():
        return
      stopped = token_id in VOCABULARY.stop_ids
      finish = "stop" if stopped else "length" if i + 1 == room else None
      yield StreamedToken(token_id=token_id, logprob=-1.0, finish=finish)
      if self._on_token:
        self._on_token(i)


def start(*answers, max_tokens=100, system=None, **kwargs):
  stream = ScriptedStream(*answers, **kwargs)
  return (
    Conversation(stream, VOCABULARY, system=system, max_tokens=max_tokens),
    stream,
  )


def talk(conversation, *lines, is_terminal=False):
  """Returns what a terminal writes for these lines."""
  pending, out = iter(lines), io.StringIO()

  def read_line(prompt):
    out.write(prompt)
    line = next(pending, None)
    if line is None:
      raise EOFError
    if line is KeyboardInterrupt:
      raise KeyboardInterrupt
    return line

  ChatTerminal(
    conversation, read_line=read_line, out=out, is_terminal=is_terminal
  ).run()
  return out.getvalue()


def test_turns_are_the_chat_format_of_the_whole_conversation():
  conversation, stream = start("Hello 🦊!", "Fine.", system="Be kind.")
  assert "".join(conversation.ask("Hi")) == "Hello 🦊!"
  assert "".join(conversation.ask("How are you?")) == "Fine."
  messages = conversation.messages()
  assert [m["role"] for m in messages] == [
    "system",
    "user",
    "assistant",
    "user",
    "assistant",
  ]
  assert stream.calls[0] == (encode_prompt(messages[:2], VOCABULARY), (0, 0))
  assert stream.calls[1] == (encode_prompt(messages[:4], VOCABULARY), (1, 0))
  whole = encode_chat(messages, VOCABULARY)[0]
  assert conversation.num_tokens == len(whole)


def test_pieces_never_hold_half_a_character():
  conversation, _ = start("a🦊b")
  assert list(conversation.ask("x")) == ["a", "🦊", "b"]


@pytest.mark.parametrize(
  "answer, max_tokens, end, text",
  [
    (VOCABULARY.encode("long"), 2, "max_tokens", "lo"),
    ([*VOCABULARY.encode("text"), EOS], 50, "stop", "text"),
    (VOCABULARY.encode("🦊")[:2], 2, "max_tokens", "\ufffd"),
  ],
)
def test_an_answer_without_the_end_of_a_turn_gets_one(answer, max_tokens, end, text):
  conversation, stream = start(answer, "Next.", max_tokens=max_tokens)
  assert "".join(conversation.ask("Hi")) == text
  assert conversation.turns[0].end == end
  list(conversation.ask("Go on"))
  kept = [token_id for token_id in answer[:max_tokens] if token_id != EOS]
  prefix = encode_prompt([{"role": "user", "content": "Hi"}], VOCABULARY)
  follow_up = encode_prompt([{"role": "user", "content": "Go on"}], VOCABULARY)
  assert stream.calls[1][0] == [*prefix, *kept, END, *follow_up]


def test_a_retry_takes_the_place_of_the_answer():
  conversation, stream = start("One.", "Two.", "Three.")
  list(conversation.ask("Hi"))
  assert "".join(conversation.retry()) == "Two."
  assert stream.calls[1] == (stream.calls[0][0], (0, 1))
  assert len(conversation.turns) == 1 and conversation.turns[0].text == "Two."
  assert "".join(conversation.retry(lambda: True)) == ""
  assert conversation.turns[0].text == "Two."


def test_a_full_context_is_an_error_and_nothing_is_cut():
  conversation, _ = start(VOCABULARY.encode("x" * 90), "Fine.", max_length=60)
  text = "".join(conversation.ask("Hi"))
  assert conversation.turns[0].end == "context" and conversation.num_tokens == 60
  with pytest.raises(ContextFullError, match="reads 60 tokens.*Nothing was cut"):
    list(conversation.ask("More"))
  assert conversation.turns[0].text == text and len(conversation.turns) == 1
  conversation.reset()
  assert "".join(conversation.ask("Hi")) == "Fine."


def test_commands():
  conversation, stream = start("One.", "Two.", "Arr.", "Slash.")
  shown = talk(
    conversation,
    "/retry",
    "",
    "Hi",
    "/retry",
    "/reset",
    "/system",
    "/system A pirate.",
    "/system",
    "Hi",
    "//x",
    "/rest",
    "/help",
    KeyboardInterrupt,
    "/exit",
    "never read",
  )
  for text in (
    "> (There is nothing to try again: nothing was asked yet.)\n",
    "> One.\n> Two.\n> (A new conversation.)\n",
    "(No system message is set.)\n> (A new conversation with this system message.)\n"
    "> (The system message: A pirate.)\n> Arr.\n> Slash.\n",
    "(/rest is no command. Did you mean",
    "/save FILE",
    "(Ctrl-D or /exit leaves.)\n",
  ):
    assert text in shown
  assert conversation.messages()[0] == {"role": "system", "content": "A pirate."}
  assert conversation.turns[1].question == "/x"


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on():
  def interrupt(i):
    if i == 2:
      os.kill(os.getpid(), signal.SIGINT)

  conversation, stream = start("Hello there.", "", "Yes.", on_token=interrupt)
  before = signal.getsignal(signal.SIGINT)
  shown = talk(conversation, "Hi", "/reset", "Again")
  assert shown.startswith("> Hel\n(Stopped.)\n> (A new conversation.)\n")
  assert signal.getsignal(signal.SIGINT) is before
  with pytest.raises(KeyboardInterrupt), StopOnInterrupt():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def test_an_answer_that_is_stopped_before_it_begins_changes_nothing():
  class Slow(ScriptedStream):
    def stream(self, *args, **kwargs):
      os.kill(os.getpid(), signal.SIGINT)
      yield from super().stream(*args, **kwargs)

  conversation = Conversation(Slow("Never."), VOCABULARY, max_tokens=10)
  assert "(Stopped before the answer began" in talk(conversation, "Hi")
  assert conversation.turns == [] and conversation.num_tokens == 0


def test_limits_are_named():
  conversation, _ = start(*["x" * 90] * 4, max_tokens=3, max_length=40)
  shown = talk(conversation, "Hi", "You")
  assert "> xxx\n(Cut off after 3 tokens: --max_tokens.)\n" in shown
  assert "(The context is full: the model reads 40 tokens" in shown
  assert "/reset begins a new one.)" in shown
  conversation, _ = start("x" * 90, max_tokens=100, max_length=40)
  assert "(Cut off: the context of 40 tokens is full." in talk(conversation, "Hi")


def test_a_terminal_sees_the_speed_and_no_control_characters():
  conversation, _ = start("\x1b[2Jred\tblue\n", "ok")
  shown = talk(conversation, "Hi", is_terminal=True)
  assert "\ufffd[2Jred\tblue\n" in shown
  assert "\033[2m14 tokens, the first after" in shown and "tokens/s; " in shown
  assert "\033[2m" not in talk(conversation, "Hi")


def test_save_writes_a_chat_document_once(tmp_path):
  conversation, _ = start("Ja 🦊.")
  path = tmp_path / "talk.jsonl"
  lines = ("/save", f"/save {path}", "Hi", f"/save {path}", f"/save {path}")
  shown = talk(conversation, *lines, f"/save {tmp_path}/none/talk.jsonl")
  assert json.loads(path.read_text("utf-8")) == {
    "messages": [
      {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": "Ja 🦊."},
    ]
  }
  for text in ("needs the name", "nothing to save", "1 turns are in", "exists already"):
    assert text in shown
  assert "cannot be written: No such file" in shown


def test_a_question_that_is_no_text_is_refused_and_the_talk_goes_on():
  conversation, _ = start("Yes.")
  shown = talk(conversation, "\udce2", "Hi")
  assert "surrogate" in shown and shown.endswith("> Yes.\n> \n")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  run = make_model_run(tmp_path_factory.mktemp("runs") / "run")
  VOCABULARY.save(run / "vocabulary")
  return run


def run_chat(*arguments, stdin=""):
  return subprocess.run(
    [sys.executable, "-m", "experiments.cli", "chat", *arguments],
    input=stdin,
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_the_command_answers_as_the_batched_sampler_does(checkpoint):
  law = SamplingLaw(temperature=0.7, top_p=0.95, max_length=48)
  prompt = encode_prompt([{"role": "user", "content": "Hi"}], VOCABULARY)
  params = init_params(MODEL, jax.random.key(0))
  stops = VOCABULARY.stop_ids
  sampler = JaxSampler(params, MODEL, law, stop_ids=stops, batch_size=1, seed=5)
  (expected,) = sampler.sample([prompt], [(0, 0)])
  found = run_chat(f"--checkpoint={checkpoint}", "--seed=5", stdin="Hi\n")
  assert found.returncode == 0, found.stderr
  assert found.stdout == VOCABULARY.decode(expected.token_ids) + "\n"
  assert ("cut off after" in found.stderr) == (expected.finish == "length")


def test_int8_in_bfloat16_with_few_tokens(checkpoint):
  found = run_chat(
    f"--checkpoint={checkpoint}",
    "--weights=int8",
    "--compute_dtype=bfloat16",
    "--max_tokens=1",
    "--prompt=Hi",
  )
  assert found.returncode == 0, found.stderr
  assert "cut off after 1 tokens: --max_tokens" in found.stderr


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--temperature=-1"], "--temperature (-1.0) must be 0 or more"),
    (["--top_p=0"], "--top_p (0.0) must lie in (0, 1]"),
    (["--max_tokens=0"], "--max_tokens (0) must be 1"),
    (["--seed=-1"], "--seed (-1) must be 0"),
    (["--prompt=" + "x" * 90], "The context is full: the model reads 48 tokens"),
    (["--checkpoint=nowhere"], "nowhere is not the folder of a run"),
  ],
)
def test_what_a_person_can_mend_is_one_line(
  checkpoint, flags, message, capsys, monkeypatch
):
  # This process has started JAX already; and nothing here is ever computed.
  monkeypatch.setattr("experiments.devices.start_jax", lambda *_, **__: None)
  monkeypatch.setattr(chat, "_compile_meanwhile", lambda *_: None)
  arguments = [f"--checkpoint={checkpoint}", "--prompt=Hi", *flags]
  assert chat.main(arguments) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_no_prompt_and_wrong_flags(checkpoint, monkeypatch, capsys):
  monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
  assert chat.main([f"--checkpoint={checkpoint}"]) == 2
  assert "The prompt is empty" in capsys.readouterr().err
  for flags in ([], [f"--checkpoint={checkpoint}", "--weights=int4"]):
    with pytest.raises(SystemExit) as raised:
      chat.main(flags)
    assert raised.value.code == 2


def test_one_answer_that_is_interrupted(capsys):
  conversation, _ = start(
    "Hello there.", on_token=lambda i: i == 2 and os.kill(os.getpid(), signal.SIGINT)
  )
  with pytest.raises(KeyboardInterrupt):
    chat.answer_once(conversation, "Hi")
  assert capsys.readouterr().out == "Hel\n"


def test_an_interrupt_that_a_library_has_swallowed_is_not_lost(monkeypatch):
  monkeypatch.setattr(process, "_early_signum", signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    process.raise_early_interrupt()
  assert process.raise_early_interrupt() is None


def test_errors_have_the_types_that_the_verbs_know():
  assert issubclass(ContextFullError, DataError)
  assert not issubclass(ContextFullError, ConfigError)
