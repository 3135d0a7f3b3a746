"""A Hugging Face `config.json` as a ModelConfig, and back.

Every field is used, listed (hf_config_fields) as one that does not change the model,
or refused by its name: a field that nobody has heard of may change what the weights
mean. Knows the families phi3 (Phi-3, Phi-4, Phi-4-mini, Phi-4-reasoning) and llama, as
transformers computes them; refuses to know files, weights and tokenizers.
"""

import math
from collections.abc import Mapping
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.hf_config_fields import (
  ACCEPTED,
  CLASSES,
  COMPUTE_DTYPES,
  DTYPE_FIELDS,
  INERT,
  NEEDED,
  OPTIONAL,
  PHI3_ORIGINAL,
  ROPE_ALIASES,
  ROPE_FIELDS,
  ROPE_TYPES,
  SCALING_FIELDS,
)
from phi4_jax.model.rope_scaling import LinearRope, Llama3Rope, LongRope, RopeScaling


def config_from_hf(config: Mapping[str, Any]) -> ModelConfig:
  """Returns the ModelConfig that computes what transformers computes.

  `head_dim` is None where it is hidden_size / num_attention_heads, and
  `sliding_window` is None where no sequence is long enough for it. `compute_dtype`
  is the file's dtype, float32 for float16 or none. How the model is run
  (`scan_layers`, `remat`, `attention`) does not stand in such a file and has its
  default.

  Args:
    config: what `config.json` holds, with `rope_theta` and `rope_scaling` or with
      transformers 5's `rope_parameters`.

  Raises:
    ConfigError: names all fields that are missing, unknown or have a value that is
      not supported.
  """
  reader = _Reader(config)
  fields = reader.read()
  if reader.problems:
    raise ConfigError(
      "This Hugging Face configuration cannot be used:"
      + "".join(f"\n  {problem}" for problem in reader.problems)
    )
  return ModelConfig(**fields)


class _Reader:
  """One pass over a configuration; collects everything that is wrong with it."""

  def __init__(self, config: Mapping[str, Any]):
    family = config.get("model_type")
    if family not in CLASSES:
      raise ConfigError(
        f"model_type is {family!r}; supported are {', '.join(CLASSES)}."
      )
    self.family: str = family
    self.problems: list[str] = []
    self._config = config

  def read(self) -> dict[str, Any]:
    self._check_unused()
    missing = [name for name in NEEDED if self._config.get(name) is None]
    rope = self._rope_dict()
    if rope.get("rope_theta") is None:
      missing.append("rope_theta")
    if missing:
      self.problems.insert(0, f"missing: {', '.join(missing)}.")
    fields = {
      name: self._typed(name, self._config[name], kind)
      for name, kind in (NEEDED | OPTIONAL).items()
      if self._config.get(name) is not None
    }
    rope = {
      name: self._typed(name, value, float)
      if name in ("rope_theta", "partial_rotary_factor")
      else value
      for name, value in rope.items()
    }
    window = self._config.get("sliding_window")
    if window is not None:
      window = self._typed("sliding_window", window, int)
    fields |= {"compute_dtype": self._compute_dtype(), "sliding_window": window}
    if self.problems:
      return fields
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    width = fields["hidden_size"] / max(fields["num_attention_heads"], 1)
    if fields.get("head_dim") == width:
      fields["head_dim"] = None
    if window is not None and window >= fields["max_position_embeddings"]:
      fields["sliding_window"] = None
    scaling = self._scaling(rope, fields["max_position_embeddings"])
    return fields | {
      "rope_theta": rope["rope_theta"],
      "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
      "rope_scaling": scaling,
    }

  def _typed(self, name: str, value: Any, kind: type) -> Any:
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
      self.problems.append(f"{name} is {value!r}; it must be of type {kind.__name__}.")
      return None
    return kind(value)

  def _check_unused(self) -> None:
    used = {*NEEDED, *OPTIONAL, *ROPE_FIELDS, *DTYPE_FIELDS}
    accepted = ACCEPTED | {"architectures": ([CLASSES[self.family]],)}
    if self.family == "phi3":
      used.add("sliding_window")
    else:
      accepted |= {"sliding_window": (), "partial_rotary_factor": (1,)}
    for name, value in self._config.items():
      if name in accepted:
        if value is not None and value not in accepted[name]:
          values = " or ".join(repr(v) for v in accepted[name]) or "null"
          self.problems.append(f"{name} is {value!r}; supported is {values}.")
      elif name not in used and name not in INERT:
        self.problems.append(
          f"{name} is {value!r}; this field of model_type {self.family!r} is unknown, "
          "and may change the model."
        )

  def _compute_dtype(self) -> str:
    given = {
      str(self._config[name]).removeprefix("torch.")
      for name in DTYPE_FIELDS
      if self._config.get(name) is not None
    } or {"float32"}
    if len(given) > 1 or not given <= set(COMPUTE_DTYPES):
      self.problems.append(
        f"torch_dtype (or dtype) is {' and '.join(sorted(given))}; supported is one of "
        f"{', '.join(COMPUTE_DTYPES)}."
      )
      return "float32"
    return COMPUTE_DTYPES[given.pop()]

  def _rope_dict(self) -> dict[str, Any]:
    """Returns the fields of both spellings in one dict, with `rope_type`."""
    config = self._config
    found = []
    for name in ("rope_scaling", "rope_parameters"):
      value = config.get(name) or {}
      if not isinstance(value, Mapping):
        self.problems.append(f"{name} is {value!r}; it must be an object or null.")
      elif value:
        found.append(dict(value))
    if len(found) == 2 and found[0] != found[1]:
      self.problems.append("rope_scaling and rope_parameters differ. Remove one.")
    rope = found[0] if found else {}
    kinds = {rope.pop(name) for name in ("type", "rope_type") if name in rope}
    kinds = {str(ROPE_ALIASES.get(kind, kind)) for kind in kinds if kind} or {"default"}
    rope["rope_type"] = kind = kinds.pop()
    supported = ROPE_TYPES[self.family]
    if kinds or kind not in supported:
      given = " and ".join([kind, *kinds])
      self.problems.append(
        f"rope_scaling has the type {given}; supported with model_type "
        f"{self.family!r} are {', '.join(supported)}."
      )
    else:
      self._check_scaling_fields(kind, rope)
    for name in ("rope_theta", "partial_rotary_factor"):
      outside, inside = config.get(name), rope.get(name)
      if outside is not None and inside is not None and outside != inside:
        self.problems.append(
          f"{name} is {outside!r}, but {inside!r} in rope_scaling or rope_parameters."
        )
      value = inside if outside is None else outside
      rope |= {} if value is None else {name: value}
    return rope

  def _check_scaling_fields(self, kind: str, rope: Mapping[str, Any]) -> None:
    needed = SCALING_FIELDS[kind]
    allowed = {*needed, "rope_type", "rope_theta"}
    if self.family == "phi3":
      allowed |= {"partial_rotary_factor", "original_max_position_embeddings"}
    elif rope.get("partial_rotary_factor") == 1:
      allowed.add("partial_rotary_factor")
    if kind == "longrope":
      allowed |= {"factor", "attention_factor"}
    problems = [
      f"rope_scaling.{name} is {value!r}; it does not belong to the type {kind}."
      for name, value in rope.items()
      if name not in allowed and value is not None
    ]
    missing = [name for name in needed if rope.get(name) is None]
    if missing:
      problems.append(f"rope_scaling of type {kind} lacks {', '.join(missing)}.")
    for name in set(rope) - {"rope_type", *missing}:
      value = rope[name]
      numbers = value if name.endswith(("short_factor", "long_factor")) else [value]
      if value is not None and not _are_numbers(numbers):
        problems.append(
          f"rope_scaling.{name} is {value!r}; it must be a number"
          f"{' for each pair' if numbers is value else ''}."
        )
    outside = self._config.get("original_max_position_embeddings")
    inside = rope.get("original_max_position_embeddings")
    if kind == "longrope" and outside is None:
      outside = PHI3_ORIGINAL
    if kind != "default" and None not in (inside, outside) and inside != outside:
      problems.append(
        f"original_max_position_embeddings is {outside}, but {inside} in rope_scaling. "
        "transformers reads the former."
      )
    self.problems.extend(problems)

  def _scaling(self, rope: Mapping[str, Any], max_positions: int) -> RopeScaling | None:
    kind = rope["rope_type"]
    if kind == "linear":
      return LinearRope(factor=float(rope["factor"]))
    if kind == "llama3":
      return Llama3Rope(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
      )
    if kind == "longrope":
      original = self._config.get("original_max_position_embeddings")
      original = PHI3_ORIGINAL if original is None else original
      attention_factor = rope.get("attention_factor")
      factor = rope.get("factor")
      # A factor of another size than ModelConfig's default comes from.
      if factor is not None and factor * original != max_positions:
        grown = math.log(max(factor, 1)) / math.log(original)
        attention_factor = attention_factor or math.sqrt(1 + grown)
      return LongRope(
        short_factor=tuple(map(float, rope["short_factor"])),
        long_factor=tuple(map(float, rope["long_factor"])),
        original_max_position_embeddings=original,
        attention_factor=None if attention_factor is None else float(attention_factor),
      )
    return None


def _are_numbers(values: Any) -> bool:
  return isinstance(values, list | tuple) and all(
    type(value) in (int, float) for value in values
  )


def config_to_hf(
  model: ModelConfig, base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns what `config.json` is to hold for this model.

  `config_from_hf` gives the model back, but for how it is run (`scan_layers`,
  `remat`, `attention`) and a `head_dim` that follows from the other sizes.

  Args:
    model: the model.
    base: a configuration whose family, spelling and other fields (ids of special
      tokens, ...) are kept; None makes a new one, of the family phi3 if it can
      compute the model.

  Raises:
    ConfigError: if the family cannot compute the model.
  """
  family = base["model_type"] if base else _family_of(model)
  problem = _obstacle(model, family)
  if problem:
    raise ConfigError(f"model_type {family!r} of Hugging Face has {problem}.")
  config = dict(base) if base else new_config(family)
  config |= {name: getattr(model, name) for name in (*NEEDED, *OPTIONAL)}
  if model.head_dim is None and not (base and base.get("head_dim")):
    del config["head_dim"]
  else:
    config["head_dim"] = model.head_width
  config |= dtype_fields(config, model.compute_dtype)
  if family == "phi3":
    window = config.get("sliding_window")
    if model.sliding_window or (window or 0) < model.max_position_embeddings:
      config["sliding_window"] = model.sliding_window
  _put_rope(config, model, family)
  return config


def dtype_fields(config: Mapping[str, Any], dtype: str) -> dict[str, str]:
  """Returns the dtype under the names that a configuration has for it."""
  names = [name for name in DTYPE_FIELDS if name in config] or DTYPE_FIELDS[:1]
  return dict.fromkeys(names, dtype)


def _family_of(model: ModelConfig) -> str:
  return next((f for f in CLASSES if not _obstacle(model, f)), "phi3")


def _obstacle(model: ModelConfig, family: str) -> str | None:
  """Returns what the family lacks to compute the model."""
  kind = _rope_type(model)
  if kind not in ROPE_TYPES[family]:
    return f"no rope scaling of type {kind}"
  if family == "llama" and model.sliding_window:
    return "no sliding_window"
  if family == "llama" and model.rotary_width < model.head_width:
    return "no partial_rotary_factor"
  return None


def _rope_type(model: ModelConfig) -> str:
  names = {LinearRope: "linear", Llama3Rope: "llama3", LongRope: "longrope"}
  return names.get(type(model.rope_scaling), "default")


def new_config(family: str) -> dict[str, Any]:
  """Returns the fields of a family that are the same in all of its models."""
  config: dict[str, Any] = {
    "architectures": [CLASSES[family]],
    "model_type": family,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_cache": True,
  }
  if family == "phi3":
    return config | {"embd_pdrop": 0.0, "resid_pdrop": 0.0}
  return config | {"mlp_bias": False, "pretraining_tp": 1}


def _put_rope(config: dict[str, Any], model: ModelConfig, family: str) -> None:
  """Writes the rotary fields in the spelling that the configuration has."""
  kind, scaling = _rope_type(model), model.rope_scaling
  rope: dict[str, Any] = {name: getattr(scaling, name) for name in SCALING_FIELDS[kind]}
  theta = {"rope_theta": model.rope_theta}
  if family == "phi3":
    theta["partial_rotary_factor"] = model.partial_rotary_factor
  if isinstance(scaling, LongRope):
    rope = {name: list(factors) for name, factors in rope.items()}
    if scaling.attention_factor is not None:
      rope["attention_factor"] = scaling.attention_factor
    config["original_max_position_embeddings"] = (
      scaling.original_max_position_embeddings
    )
  elif family == "phi3":
    config.setdefault("original_max_position_embeddings", model.max_position_embeddings)
  else:
    config.pop("original_max_position_embeddings", None)
  old = config.pop("rope_scaling", None) or {}
  if config.get("rope_parameters") is not None:
    if isinstance(scaling, LongRope):
      rope["original_max_position_embeddings"] = (
        scaling.original_max_position_embeddings
      )
    config["rope_parameters"] = {"rope_type": kind, **rope, **theta}
    # What stands outside of the dict as well is to say the same.
    config |= {name: value for name, value in theta.items() if name in config}
    return
  config.pop("rope_parameters", None)
  config |= theta
  # Phi-3 code of older days knows "type" only.
  names = [name for name in ("type", "rope_type") if name in old]
  names = names or ["type" if family == "phi3" else "rope_type"]
  config["rope_scaling"] = dict.fromkeys(names, kind) | rope if rope else None
