"""A sample by ids, and ids that occur twice."""

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.basic_steps import DropDuplicateIds, SampleStep
from phi4_jax.curation.steps import CorpusStep, DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document

DOCUMENTS = [Document(id=f"id-{i}", text="x") for i in range(4000)]


def sample(**fields):
  judge = SampleStep(**fields).make_judge()
  return {d.id for d in DOCUMENTS if isinstance(judge(d), Keep)}


def test_a_sample_has_the_share_that_was_asked_for():
  kept = len(sample(fraction=0.25))
  deviation = (4000 * 0.25 * 0.75) ** 0.5
  assert abs(kept - 1000) < 4 * deviation
  assert len(sample(fraction=1.0)) == 4000


def test_a_smaller_sample_is_part_of_a_larger_one():
  assert sample(fraction=0.1) < sample(fraction=0.3)
  assert sample(fraction=0.1) != sample(fraction=0.1, seed=1)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_share_must_be_one(fraction):
  with pytest.raises(ConfigError, match=r"SampleStep\.fraction"):
    SampleStep(fraction=fraction)


def test_the_first_of_equal_ids_stays():
  step = DropDuplicateIds()
  make_key = step.make_key()
  keys = [make_key(Document(id=name, text="x")) for name in "abacba"]
  found = list(step.judge_keys(iter(keys)))
  assert found == [
    *(None, None, Drop("duplicate_id", "same as #0"), None),
    *(Drop("duplicate_id", "same as #1"), Drop("duplicate_id", "same as #0")),
  ]


def test_they_are_steps():
  assert isinstance(SampleStep(fraction=0.5), DocumentStep)
  assert isinstance(DropDuplicateIds(), CorpusStep)
  assert SampleStep(fraction=0.5).recipe() != SampleStep(fraction=0.5, seed=1).recipe()
