"""phi4 chat: a conversation with a model on the terminal, or one answer in a script.

Takes any folder with a model, converted or trained. The first token comes within
seconds: programs are compiled (or read from the compilation cache) while the weights
are read, only a chunk of the prompt is computed before the first token is drawn, and
what a conversation has read once is kept.
"""

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import cli, process
from phi4_jax.common.errors import ConfigError

if TYPE_CHECKING:
  from experiments.conversation import Conversation
  from experiments.model_folder import ModelFolder
  from phi4_jax.common.axes import Params
  from phi4_jax.sampling.stream_programs import StreamPrograms

_EPILOG = """without a terminal on standard input, all of it is one prompt:
  echo 'What is a monad?' | phi4 chat --checkpoint=ckpt/smollm2

examples:
  phi4 chat --checkpoint=ckpt/smollm2
  phi4 chat --checkpoint=runs/sft --temperature=0 --prompt='What is 3 + 4?'
  phi4 chat --checkpoint=ckpt/phi-4 --weights=int8 --compute_dtype=bfloat16
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags; exits with code 2 for a wrong one, 0 after --help."""
  parser = argparse.ArgumentParser(
    prog="phi4 chat",
    description="Talk with a model: a converted one or one of your runs.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add(
    "--checkpoint",
    metavar="DIR",
    required=True,
    help="folder of a run or of `phi4 convert`, or one of its checkpoints",
  )
  add("--prompt", metavar="TEXT", help="print the answer to this and exit")
  add("--system", metavar="TEXT", help="the system message")
  add(
    "--temperature",
    type=float,
    default=0.7,
    metavar="X",
    help="0 always takes the likeliest token (default: %(default)s)",
  )
  add(
    "--top_p",
    type=float,
    default=0.95,
    metavar="P",
    help="draw from the likeliest tokens that have this share (default: %(default)s)",
  )
  add(
    "--top_k",
    type=int,
    default=0,
    metavar="K",
    help="draw from the K likeliest tokens; 0 means all (default: %(default)s)",
  )
  add(
    "--max_tokens",
    type=int,
    default=1024,
    metavar="N",
    help="most tokens of an answer (default: %(default)s)",
  )
  add(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="the same seed and questions give the same answers (default: %(default)s)",
  )
  add(
    "--weights",
    choices=("full", "int8"),
    default="full",
    help="int8 takes a quarter of the memory of float32 (default: %(default)s)",
  )
  add(
    "--compute_dtype",
    choices=("float32", "bfloat16"),
    help="of activations and products (default: the model's own setting)",
  )
  return parser.parse_args(argv)


def open_conversation(
  arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> "Conversation":
  """Loads the model, compiling meanwhile, and returns a conversation with it.

  Args:
    arguments: what `parse_args` has read.
    stack: to be left at the end; waits for what is being compiled then.

  Raises:
    ConfigError: if the folder holds no model, or a flag is out of range.
    DataError: if its vocabulary is missing or has no chat format.
    CheckpointError: if its checkpoint is damaged.
  """
  # Here and not above: --help and wrong flags need not wait for JAX.
  import dataclasses

  from experiments.conversation import Conversation
  from experiments.devices import start_jax
  from experiments.model_folder import load_model_folder
  from phi4_jax.common.mesh import MeshConfig
  from phi4_jax.data.chat import encode_prompt
  from phi4_jax.sampling.stream import StreamSampler
  from phi4_jax.sampling.stream_programs import StreamPrograms

  # Somebody waits: programs that compile fast are worth a file, too.
  start_jax(MeshConfig(cpu_devices=1), rows=1, min_cached_seconds=0.0)
  folder = load_model_folder(arguments.checkpoint)
  encode_prompt([{"role": "user", "content": ""}], folder.vocabulary)  # can it chat?
  model = folder.model
  if arguments.compute_dtype:
    model = dataclasses.replace(model, compute_dtype=arguments.compute_dtype)
  law = _make_law(arguments, model.max_position_embeddings)
  shapes = _abstract_params(folder, arguments.weights)
  programs = StreamPrograms(shapes, model, law)
  _compile_meanwhile(programs, stack)
  stream = StreamSampler(
    _load_params(folder, arguments.weights),
    programs,
    stop_ids=folder.vocabulary.stop_ids,
    seed=arguments.seed,
  )
  return Conversation(
    stream,
    folder.vocabulary,
    system=arguments.system,
    max_tokens=arguments.max_tokens,
  )


def _open_aloud(
  arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> "Conversation":
  """Opens the conversation; a person at a terminal is told what takes so long."""
  line = f"loading {arguments.checkpoint} (the first time compiles, too) ..."
  shown = sys.stderr.isatty()
  if shown:
    print(line, end="", file=sys.stderr, flush=True)
  try:
    with process.leave_at_interrupt():
      return open_conversation(arguments, stack)
  finally:
    if shown:
      print("\r" + " " * len(line) + "\r", end="", file=sys.stderr, flush=True)


def _make_law(arguments: argparse.Namespace, max_length: int):
  from phi4_jax.common.sampler import SamplingLaw

  if arguments.max_tokens < 1:
    raise ConfigError(f"--max_tokens ({arguments.max_tokens}) must be 1 or more.")
  if arguments.seed < 0:
    raise ConfigError(f"--seed ({arguments.seed}) must be 0 or more.")
  try:
    return SamplingLaw(
      temperature=arguments.temperature,
      top_k=arguments.top_k,
      top_p=arguments.top_p,
      max_length=max_length,
    )
  except ConfigError as error:
    raise ConfigError(str(error).replace("SamplingLaw.", "--")) from error


def _abstract_params(folder: "ModelFolder", weights: str) -> "Params":
  """Shapes and dtypes of `_load_params`, without reading a weight."""
  import jax

  from experiments import adapters
  from phi4_jax.model.quantize import quantize_params
  from phi4_jax.model.transformer import abstract_params
  from phi4_jax.training.checkpoint import as_stored

  shapes = abstract_params(folder.model)
  if adapters.find_lora(folder.run) is None:
    shapes = as_stored(folder.checkpoint, shapes)
  else:
    shapes = adapters.as_stored(folder.run, shapes)
  return jax.eval_shape(quantize_params, shapes) if weights == "int8" else shapes


def _load_params(folder: "ModelFolder", weights: str) -> "Params":
  """Loads the weights to one device, as they are stored or as int8.

  The files are hashed, and must be those that were written; that their digest is the
  one of result.json, which takes as long again, is left to the verbs that make results.
  """
  import jax

  from experiments import adapters
  from phi4_jax.common.mesh import MeshConfig
  from phi4_jax.model.quantize import quantize_params
  from phi4_jax.model.transformer import abstract_params
  from phi4_jax.training.checkpoint import as_stored, load_params

  if adapters.find_lora(folder.run) is None:
    shapes = as_stored(folder.checkpoint, abstract_params(folder.model))
    params = load_params(folder.checkpoint, shapes).params
  else:
    params = jax.device_put(folder.load_params(MeshConfig()), jax.local_devices()[0])
  return quantize_params(params) if weights == "int8" else params


def _compile_meanwhile(programs: "StreamPrograms", stack: contextlib.ExitStack) -> None:
  """Compiles in the background. What fails there fails again where it is needed."""
  leaving = threading.Event()
  thread = threading.Thread(
    target=programs.compile_ahead, args=(leaving.is_set,), name="compile"
  )

  def leave() -> None:
    # A process that ends while XLA compiles is aborted: at most one program is
    # waited for.
    leaving.set()
    thread.join()

  thread.start()
  stack.callback(leave)


def answer_once(conversation: "Conversation", prompt: str) -> int:
  """Writes one answer to standard output, and what cut it off to standard error."""
  from experiments.chat_terminal import StopOnInterrupt

  with StopOnInterrupt() as stop:
    for piece in conversation.ask(prompt, stop):
      sys.stdout.write(piece)
      sys.stdout.flush()
  print(flush=True)
  if stop():
    raise KeyboardInterrupt
  turn = conversation.turns[-1]
  if turn.end in ("max_tokens", "context"):
    limit = {
      "max_tokens": "--max_tokens",
      "context": f"the context of {conversation.max_length} tokens is full",
    }[turn.end]
    print(f"cut off after {len(turn.answer_ids)} tokens: {limit}", file=sys.stderr)
  return 0


def talk(conversation: "Conversation", checkpoint: str) -> int:
  """Talks on the terminal until Ctrl-D."""
  import readline  # noqa: F401 (its import gives `input` a history and editing)

  from experiments.chat_terminal import ChatTerminal

  name = Path(checkpoint).name or checkpoint
  print(f"{name}, {conversation.max_length} tokens of context. /help lists commands.")
  ChatTerminal(
    conversation,
    read_line=input,
    out=sys.stdout,
    is_terminal=sys.stdout.isatty(),
  ).run()
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_args(argv)

  def run() -> int:
    prompt = arguments.prompt
    if prompt is None and not sys.stdin.isatty():
      prompt = sys.stdin.read().rstrip("\n")
    if prompt is not None and not prompt.strip():
      raise ConfigError(
        "The prompt is empty. Give --prompt=TEXT, or pipe a text in; without either, "
        "on a terminal, phi4 chat is a conversation."
      )
    with contextlib.ExitStack() as stack:
      conversation = _open_aloud(arguments, stack)
      if prompt is None:
        return talk(conversation, arguments.checkpoint)
      return answer_once(conversation, prompt)

  try:
    return cli.run_verb(run)
  except BrokenPipeError:
    # The reader of a pipe has seen enough; nothing may be written at exit either.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
  sys.exit(main())
