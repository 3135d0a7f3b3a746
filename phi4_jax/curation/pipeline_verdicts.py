"""Holds what a judge answers against what a judge may answer.

What a step does wrong to one document must cost that document only, and be told.
"""

import json
from typing import Any

from phi4_jax.curation.pipeline_counts import STEP_FAILED
from phi4_jax.curation.pipeline_files import printable
from phi4_jax.curation.steps import Drop, Keep
from phi4_jax.data.documents import Document


class StepFailure(Exception):
  """A step has not answered as a step must."""


def check_verdict(verdict: Any, document: Document) -> Keep | Drop:
  """Raises `StepFailure` unless a judge's answer is one."""
  if isinstance(verdict, Drop):
    if not isinstance(verdict.reason, str) or not verdict.reason:
      raise StepFailure(f"gave {verdict.reason!r} as the reason to drop it")
    if not isinstance(verdict.detail, str):
      raise StepFailure(
        f"gave a {type(verdict.detail).__name__} as the detail of a Drop"
      )
    return verdict
  if not isinstance(verdict, Keep):
    raise StepFailure(f"answered {type(verdict).__name__}; Keep or Drop is required")
  kept = verdict.document
  if not isinstance(kept, Document):
    raise StepFailure(f"kept a {type(kept).__name__}; a Document is required")
  if kept.id != document.id:
    raise StepFailure(f"changed the id to {kept.id!r}")
  if kept is not document:
    try:
      check_writable(kept)
    except Exception as error:
      raise StepFailure(f"made a document that is no JSON: {error}") from None
  return verdict


def check_writable(document: Document) -> None:
  """Raises what JSON says of a document's smaller parts.

  Its content has been checked when it was made.
  """
  parts = [document.id, dict(document.labels), document.lineage]
  parts += [document.media_type, document.source, document.license]
  json.dumps(parts, ensure_ascii=False, allow_nan=False).encode("utf-8")


def make_failure(error: BaseException) -> Drop:
  """Returns the drop of a document whose step raised `error`."""
  try:
    said = str(error)
  except Exception:
    said = "(an error that cannot be shown)"
  said = said if isinstance(error, StepFailure) else f"{type(error).__name__}: {said}"
  return Drop(STEP_FAILED, printable(said))
