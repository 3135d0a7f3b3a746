"""What all steps have in common: bytes, labels, recipes."""

import dataclasses

import pytest

from phi4_jax.curation.corrupt import DropCorruptText
from phi4_jax.curation.dedup import DropNearDuplicates
from phi4_jax.curation.filters import FineWebQuality, GopherQuality, GopherRepetition
from phi4_jax.curation.filters_c4 import C4Lines
from phi4_jax.curation.language import IdentifyLanguage
from phi4_jax.curation.personal_data import MaskPersonalData
from phi4_jax.curation.steps import Drop, add_labels, drop_bytes, make_recipe
from phi4_jax.data.documents import Document

DATA = Document(id="d", data=b"%PDF", media_type="application/pdf")
STEPS = (
  C4Lines(),
  DropCorruptText(),
  FineWebQuality(),
  GopherQuality(),
  GopherRepetition(),
  IdentifyLanguage(),
  MaskPersonalData(),
)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_bytes_are_dropped_for_one_reason(step):
  wanted = Drop("not_extracted", "application/pdf is no text yet")
  assert step.make_judge()(DATA) == wanted == drop_bytes(DATA)
  assert "not_extracted" in (type(step).__doc__ or "")


def test_a_corpus_step_gives_the_same_reason():
  step = DropNearDuplicates()
  (dropped,) = step.judge_keys([step.make_key()(DATA)])
  assert dropped is not None and dropped.reason == "not_extracted"


@pytest.mark.parametrize(
  "document",
  [
    Document(id="d", text=""),
    Document(id="d", messages=({"role": "user", "content": "a"},)),
  ],
)
def test_text_and_conversations_are_no_bytes(document):
  assert drop_bytes(document) is None


def test_labels_are_added_to_a_copy():
  document = Document(id="d", text="a", labels={"a": 1, "b": 2})
  assert add_labels(document, b=3, c=4).labels == {"a": 1, "b": 3, "c": 4}
  assert document.labels == {"a": 1, "b": 2}


@dataclasses.dataclass(frozen=True)
class _Toy:
  model: str = "runs/model.npz"
  threshold: float = 0.5


def test_a_recipe_has_contents_in_the_place_of_paths():
  assert make_recipe(_Toy()) == {
    "step": "_Toy", "model": "runs/model.npz", "threshold": 0.5,
  }  # fmt: skip
  wanted = {"step": "_Toy", "threshold": 0.5, "model_digest": "abc"}
  assert make_recipe(_Toy(), "model", model_digest="abc") == wanted
  assert make_recipe(_Toy(), model="abc")["model"] == "abc"
