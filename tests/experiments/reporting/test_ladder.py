import pytest

from experiments.reporting import ladder


def _comparison(mean, low, high):
  return {"mean": mean, "interval": [low, high]}


def _arm(accuracy, **more):
  found = {"accuracy": accuracy, "interval": [accuracy - 0.02, accuracy + 0.02]}
  found |= {"accuracies": [accuracy], "runs": 1, "samples": 1, "questions": 50}
  found |= {"over": "questions", "pairs_seen": 640, "sampled_tokens": 12345}
  return found | more


def _ladder(comparison, **arms):
  arms = {"sft": _arm(0.5), "pts_dpo": _arm(0.6)} | arms
  return {"arms": arms, "comparisons": {"pts_dpo_minus_sft": comparison}}


@pytest.mark.parametrize(
  "comparison, told, said",
  [
    (
      _comparison(0.1, 0.05, 0.15),
      "better",
      "PTS-DPO raises accuracy from 0.500 to 0.6",
    ),
    (_comparison(-0.1, -0.2, -0.01), "worse", "PTS-DPO lowers accuracy"),
    (_comparison(0.1, -0.01, 0.2), "open", "no difference that these data show"),
    (_comparison(0.0, 0.0, 0.0), "open", "no difference that these data show"),
  ],
)
def test_the_verdict_is_what_the_interval_says(comparison, told, said):
  assert ladder.verdict(comparison) == told
  found = _ladder(comparison)
  assert said in ladder.headline(found, "sft")
  assert f'<li class="{told}">' in ladder.verdicts(found, "sft")


def test_a_worse_result_is_printed_as_plainly():
  html = ladder.verdicts(_ladder(_comparison(-0.1, -0.2, -0.05)), "sft")
  assert "PTS-DPO is below SFT" in html
  assert "\N{MINUS SIGN}0.100 [\N{MINUS SIGN}0.200, \N{MINUS SIGN}0.050]" in html


def test_the_highest_arm_is_named_whichever_it_is():
  found = _ladder(_comparison(0.1, 0.05, 0.15), rejection_sampling=_arm(0.9))
  html = ladder.verdicts(found, "sft")
  assert "The highest accuracy is 0.900, by rejection sampling." in html


def test_a_baseline_alone_has_a_headline():
  found = {"arms": {"sft": _arm(0.5)}, "comparisons": {}}
  assert ladder.headline(found, "sft") == "SFT answers 50.0% of the questions right"


def test_other_arms_take_the_headline_without_pivotal_tokens():
  found = {
    "arms": {"base": _arm(0.5), "my_arm": _arm(0.6)},
    "comparisons": {"my_arm_minus_base": _comparison(0.1, 0.05, 0.15)},
  }
  assert ladder.headline(found, "base").startswith("my arm raises accuracy")
  colors = ladder.arm_colors(found["arms"], "base")
  assert colors == {"base": 0, "my_arm": 1}


def test_section_has_table_labels_and_both_pictures():
  labels = {"method": {"steps": {"share": 0.75, "accuracy": 0.9}}}
  found = _ladder(
    _comparison(0.1, 0.05, 0.15),
    sft=_arm(0.5, labels={}, samples=3),
    pts_dpo=_arm(
      0.6, labels=labels, accuracies=[0.55, 0.65], runs=2, sampled_tokens=None
    ),
  )
  html = ladder.section(found, "sft", repetition="run", links={"sft": "made"}).content
  assert html.count("<svg") == 4  # two pictures, wide and narrow
  assert "0.600 [0.580, 0.620]" in html and "+0.100 [+0.050, +0.150]" in html
  assert "steps: share" in html and "0.750" in html
  assert "SFT 3 times" in html and "made" in html
  assert "tokens sampled to make the pairs" in html
  assert "12,345" in html and "unknown" in html
