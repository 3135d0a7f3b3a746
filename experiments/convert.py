"""Converts published models to run folders, and runs to Hugging Face folders.

phi4 convert --from=FOLDER_OR_FILE --to=ckpt/NAME          published -> run
phi4 convert --from=RUN --to=FOLDER --format=hf            run -> Hugging Face
phi4 convert --from=RUN --to=FOLDER --format=peft          adapter -> PEFT
phi4 convert --from=FOLDER --to=ckpt/NAME --base=RUN       PEFT -> adapter
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli, process, stage
from experiments.devices import set_platform
from experiments.memory import keep_freed_memory
from experiments.run_directory import peak_memory_gb
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.text import format_duration
from phi4_jax.model.hf_weights import ARCHITECTURES
from phi4_jax.model.peft_files import is_peft_folder
from phi4_jax.training.step_folders import parse_step

_DTYPES = ("stored", "bfloat16", "float32")
_EPILOG = """what --from may be:
  a Hugging Face folder   config.json and safetensors files, of a phi3 or llama model
  a GGUF file             of architecture llama or phi3; quantised tensors are widened
  a PEFT folder           a LoRA adapter (adapter_config.json); --base is the run that
                          it adapts
  a run                   any folder of a training run or of an earlier conversion; its
                          checkpoints folder or one step in that will do as well

A published model becomes a run folder: --to can then be the parent and the vocabulary
of sft, dpo, evaluate, find_pivotal_tokens and compare, and --to/model.gin is there to
be included in their gin files. Weights keep their dtype and are never held whole in
memory. A run becomes a Hugging Face folder that transformers, vLLM and llama.cpp's
converter read.

--to appears whole or not at all; the same command on a complete folder does nothing.

examples:
  phi4 convert --from=downloads/phi-4 --to=ckpt/phi-4
  phi4 convert --from=SmolLM2-135M-Instruct-Q8_0.gguf --to=ckpt/smollm2
  phi4 convert --from=runs/sft --to=out/sft --format=hf --dtype=bfloat16
  phi4 convert --from=runs/sft_lora --to=out/adapter --format=peft
  phi4 convert --from=downloads/adapter --base=ckpt/phi-4 --to=ckpt/phi-4-adapted
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags; exits with code 2 for a wrong one, 0 after --help."""
  parser = argparse.ArgumentParser(
    prog="phi4 convert",
    description="Turn published weights into a run folder, or a run into a Hugging "
    "Face folder.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--from",
    dest="source",
    metavar="PATH",
    required=True,
    help="what to convert",
  )
  parser.add_argument(
    "--to",
    dest="out",
    metavar="DIR",
    required=True,
    help="folder to make; must be new or empty",
  )
  parser.add_argument(
    "--format",
    choices=("run", "hf", "peft"),
    help="what to make: a run folder, a Hugging Face folder (by default what --from is "
    "not; adapters are merged) or the PEFT files of a run's adapter",
  )
  reading = parser.add_argument_group("of published weights")
  reading.add_argument(
    "--no_tokenizer",
    action="store_true",
    help="convert the weights alone; no verb can read or write text with them",
  )
  reading.add_argument(
    "--chat_format",
    metavar="NAME",
    help="how conversations are written, instead of what the chat template says",
  )
  reading.add_argument(
    "--base",
    metavar="RUN",
    help="of a PEFT folder: the run that it adapts",
  )
  writing = parser.add_argument_group("of runs")
  writing.add_argument(
    "--dtype",
    choices=_DTYPES,
    default="stored",
    help="of the written weights (default: stored, which changes no bit)",
  )
  writing.add_argument(
    "--architecture",
    choices=ARCHITECTURES,
    help="model class (default: that of the published model from which the run "
    "descends, else the first that can compute it)",
  )
  writing.add_argument(
    "--max_shard_gb",
    metavar="GB",
    type=float,
    default=5.0,
    help="largest size of a file, in 1e9 bytes (default: 5)",
  )
  return parser.parse_args(argv)


def find_kind(path: Path) -> str:
  """Tells what a path is: "hf", "gguf", "peft" or "run".

  Raises:
    ConfigError: if it is nothing that can be converted; says what was looked for.
  """
  if path.is_file():
    return "gguf"
  if not path.is_dir():
    raise ConfigError(f"--from={path} does not exist.")
  if path.name == "checkpoints" and (path.parent / "config.json").is_file():
    return "run"
  if path.parent.name == "checkpoints" and parse_step(path.name) is not None:
    return "run"
  if is_peft_folder(path):
    return "peft"
  if not (path / "config.json").is_file():
    ggufs = sorted(p.name for p in path.glob("*.gguf"))
    hint = f" It holds {', '.join(ggufs[:3])}: name the file." if ggufs else ""
    raise ConfigError(
      f"--from={path} has no config.json: it is neither a Hugging Face folder nor a "
      f"run.{hint}"
    )
  config = io.read_json(path / "config.json")
  if "verb" in config:
    return "run"
  if "model_type" not in config:
    raise ConfigError(
      f"{path / 'config.json'} has no model_type: it is not that of a Hugging Face "
      "model."
    )
  return "hf"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the verb; returns its exit code."""

  def body() -> int:
    process.watch_parent()
    stage.show_log_messages()
    arguments = parse_args(argv)
    source, out = Path(arguments.source), Path(arguments.out)
    kind = find_kind(source)
    wanted = arguments.format or ("hf" if kind == "run" else "run")
    if (kind == "run") == (wanted == "run"):
      raise ConfigError(
        f"--from={source} is a {'run' if kind == 'run' else f'{kind} model'} and "
        f"--format={wanted}: nothing to convert. "
        + ("--format=hf exports it." if kind == "run" else "--format=run imports it.")
      )
    if (kind == "peft") != (arguments.base is not None):
      raise ConfigError(
        f"--from={source} is a PEFT adapter: say with --base=RUN which run it adapts."
        if kind == "peft"
        else f"--base is for a PEFT adapter, and --from={source} is none."
      )
    set_platform()
    if kind == "peft":
      return _import_adapter(source, out, Path(arguments.base))
    keep_freed_memory()  # or every piece is a mapping of its own: twice the time
    if wanted == "run":
      return _import(source, out, arguments)
    if wanted == "peft":
      return _export_adapter(source, out, arguments)
    return _export(source, out, arguments)

  return cli.run_verb(body)


def _import(source: Path, out: Path, arguments: argparse.Namespace) -> int:
  # Imports take seconds: not for --help.
  from experiments.convert_in import format_bytes, import_model

  result = import_model(
    source,
    out,
    with_tokenizer=not arguments.no_tokenizer,
    chat_format=arguments.chat_format,
  )
  if result is None:
    print(f"convert: already complete in {out} (see result.json)")
    return 0
  seconds = result["minutes"] * 60
  rows = {
    "model": f"{result['model_type']}, {result['parameters']:,} parameters",
    "weights": f"{result['dtype']}, {format_bytes(result['bytes'])}, "
    f"{format_bytes(1e9 * result['perf']['gigabytes_per_second'])}/s",
    "time": f"{format_duration(seconds)}, peak memory "
    f"{result['peak_memory_gb']:.2f} GB",
    "vocabulary": _describe_vocabulary(out),
    "fingerprint": result["fingerprint"],
  }
  if result["note"]:
    rows["source"] = result["note"]
  _print_rows(rows)
  print(f"convert: done -> {out}\n\nnext:")
  if not arguments.no_tokenizer and _can_chat(out):
    print(f"  phi4 chat --checkpoint={out}")
  print(f"  phi4 convert --from={out} --to=OUT --format=hf")
  print(
    f"  in a gin file of evaluate, sft, dpo: include '{out}/model.gin', and\n"
    f"  parent = '{out}', vocabulary = '{out}'"
  )
  return 0


def _can_chat(out: Path) -> bool:
  from phi4_jax.data.tokenizer import load_vocabulary

  return load_vocabulary(out / "vocabulary").chat is not None


def _describe_vocabulary(out: Path) -> str:
  folder = out / "vocabulary"
  if not folder.is_dir():
    return "none (--no_tokenizer)"
  from phi4_jax.data.tokenizer import load_vocabulary

  vocabulary = load_vocabulary(folder)
  chat = vocabulary.chat
  stops = ", ".join(vocabulary.token_text(i) for i in vocabulary.stop_ids)
  name = f"chat format {chat.name}" if chat else "a base model's, without chat format"
  return f"{vocabulary.size:,} ids, {name}, answers end at {stops}"


def _export(source: Path, out: Path, arguments: argparse.Namespace) -> int:
  from experiments.convert_in import format_bytes
  from experiments.convert_out import export_model
  from experiments.model_folder import load_model_folder

  if arguments.max_shard_gb <= 0:
    raise ConfigError(f"--max_shard_gb ({arguments.max_shard_gb}) must be positive.")
  folder = load_model_folder(source, needs_vocabulary=False)
  made = export_model(
    folder,
    out,
    dtype=arguments.dtype,
    architecture=arguments.architecture,
    max_shard_gb=arguments.max_shard_gb,
  )
  if made is None:
    print(f"convert: already complete in {out}")
    return 0
  rows = {
    "model": f"{made['model_type']}, {made['parameters']:,} parameters, of "
    f"{folder.checkpoint}",
    "weights": f"{made['stored_dtype']}, {format_bytes(made['bytes'])} in "
    f"{made['files']} file{'s' if made['files'] > 1 else ''}",
    "time": f"{format_duration(process.age_seconds())}, peak memory "
    f"{peak_memory_gb():.2f} GB",
  }
  _print_rows(rows)
  for note in made["notes"]:
    print(f"warning: {note}", file=sys.stderr)
  print(f"convert: done -> {out}")
  return 0


def _import_adapter(source: Path, out: Path, base: Path) -> int:
  from experiments.convert_peft import import_adapter

  result = import_adapter(source, out, base=base)
  if result is None:
    print(f"convert: already complete in {out} (see result.json)")
    return 0
  _print_rows(
    {
      "adapter": f"{result['trained_parameters']:,} parameters, of {source}",
      "base": f"{result['parameters']:,} parameters, {base} (stays where it is)",
      "fingerprint": result["fingerprint"],
    }
  )
  print(f"convert: done -> {out}")
  return 0


def _export_adapter(source: Path, out: Path, arguments: argparse.Namespace) -> int:
  from experiments.convert_peft import export_adapter
  from experiments.model_folder import load_model_folder

  folder = load_model_folder(source, needs_vocabulary=False)
  made = export_adapter(folder, out, architecture=arguments.architecture)
  if made is None:
    print(f"convert: already complete in {out}")
    return 0
  _print_rows(
    {
      "adapter": f"rank {made['rank']}, alpha {made['alpha']:g}, "
      f"{made['trained_parameters']:,} parameters on {', '.join(made['modules'])}",
      "base": f"{made['base']}, a {made['model_type']} model",
    }
  )
  print(
    f"convert: done -> {out}\n\nnext:\n"
    f"  phi4 convert --from={made['base']} --to=BASE --format=hf\n"
    f"  PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), '{out}')"
  )
  return 0


def _print_rows(rows: dict[str, Any]) -> None:
  width = max(map(len, rows))
  for name, value in rows.items():
    print(f"  {name.ljust(width)}  {value}")


if __name__ == "__main__":
  sys.exit(main())
