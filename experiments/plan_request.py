"""What one child of `phi4 plan` is asked to compile, as a file between processes."""

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
  """One program.

  Attributes:
    root: name of the root config class of the gin files.
    gin_files: as typed.
    bindings: gin text of the `--gin.` flags.
    topology: name of the slice or slices.
    settings: changes of the configuration by short name (`plan_training`).
    batch_per_device: rows of a microbatch on a device; None takes the configuration's
      batch as it is.
    tokens: of the run whose duration is asked; None takes the configuration's.
    row_length: T; None takes the model's longest.
    sample: whether the program is a decode step instead of a train step.
    batch: rows that are decoded together, of all devices.
    slots: of the key-value cache, where `sample`.
    assumptions: changes of the chip's figures.
    hbm_limit_gib: memory to stay below, instead of the chip's.
    xla_options: libtpu's compiler options.
    cache: folder of compiled answers.
  """

  root: str
  gin_files: list[str]
  bindings: list[str]
  topology: str
  cache: str
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  batch_per_device: int | None = None
  row_length: int | None = None
  tokens: float | None = None
  sample: bool = False
  batch: int | None = None
  slots: int | None = None
  assumptions: dict[str, float] = dataclasses.field(default_factory=dict)
  hbm_limit_gib: float | None = None
  xla_options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def write(self, path: Path) -> None:
    path.write_text(json.dumps(dataclasses.asdict(self)), "utf-8")

  @classmethod
  def read(cls, path: Path) -> "PlanRequest":
    return cls(**json.loads(path.read_text("utf-8")))
