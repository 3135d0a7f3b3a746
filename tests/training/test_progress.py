import io

from phi4_jax.training.progress import Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def test_a_terminal_has_one_line_that_is_rewritten():
  stream, clock = Terminal(), Clock()
  progress = Progress("sft", 600, stream=stream, clock=clock)
  for step in (10, 20, 30):
    clock.now += 5
    progress.update(step, loss=1.23456, rate=5210.0)
  progress.close()
  lines = stream.getvalue().split("\r\x1b[K")
  assert lines[0] == ""
  assert lines[1] == "sft  10/600  loss 1.2346  5.2k tokens/s"
  # Ten steps take five seconds, 570 are left.
  assert lines[3] == "sft  30/600  loss 1.2346  5.2k tokens/s  4m45s left\n"


def test_a_terminal_is_not_flooded():
  stream, clock = Terminal(), Clock()
  progress = Progress("sft", 1000, stream=stream, clock=clock)
  for step in range(1, 500):
    clock.now += 0.001
    progress.update(step)
  assert stream.getvalue().count("\r") == 5


def test_a_file_gets_a_line_now_and_then_and_the_last():
  stream, clock = io.StringIO(), Clock()
  progress = Progress("sft", 100, stream=stream, clock=clock, every_seconds=30.0)
  for step in range(1, 101):
    clock.now += 1
    progress.update(step, rate=99.0)
  progress.close()
  lines = stream.getvalue().splitlines()
  assert [line.split()[1] for line in lines] == [
    "1/100",
    "31/100",
    "61/100",
    "91/100",
    "100/100",
  ]
  assert lines[1] == "sft  31/100  99 tokens/s  1m09s left"
  assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_other_text_gets_its_own_line():
  stream = Terminal()
  progress = Progress("sft", 10, stream=stream, clock=Clock())
  progress.update(1)
  progress.interrupt()
  progress.interrupt()
  assert stream.getvalue() == "\r\x1b[Ksft  1/10\n"


def test_steps_may_be_what_no_person_counts():
  stream, clock = Terminal(), Clock()
  progress = Progress(
    "convert", 400, stream=stream, clock=clock, describe=lambda done: f"{done} bytes"
  )
  for done in (100, 300):
    clock.now += 5
    progress.update(done)
  progress.close()
  assert stream.getvalue().endswith("convert  300 bytes  2s left\n")
