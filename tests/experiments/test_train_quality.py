"""phi4 train_quality, as a user calls it: quality, then topics with the amplifier."""

import json

import numpy as np
import pytest

from experiments import cli
from experiments.quality_report import write_quality_report
from phi4_jax.curation.amplify import FilterQualityByTopic
from phi4_jax.curation.quality_model import load_quality_model
from phi4_jax.curation.quality_training import HeldOut, describe_held_out
from phi4_jax.curation.steps import Keep
from phi4_jax.data.documents import Document

SMALL = [
  "--gin.GeneratedAnnotations.num_documents=4000",
  "--gin.QualityTrainingConfig.num_buckets=8192",
  "--gin.QualityTrainingConfig.l2=(1e-3,)",
]


def run(name, workdir, *flags):
  file = f"gin_configs/train_quality/{name}.gin"
  arguments = [f"--gin_file={file}", f"--workdir={workdir}", *SMALL, *flags]
  return cli.main(["train_quality", *arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  assert run("tiny", folder / "quality") == 0
  quality = f"--gin.TrainQualityConfig.quality={folder / 'quality'}"
  assert run("topics_tiny", folder / "topics", quality) == 0
  return folder


def test_a_model_with_a_report(runs, capsys):
  folder = runs / "quality"
  result = json.loads((folder / "result.json").read_text())
  metrics = result["metrics"]
  assert 0.85 < metrics["roc_auc_low"] < metrics["roc_auc"] < metrics["roc_auc_high"]
  assert result["fingerprint"] == load_quality_model(folder / "model.npz").digest
  report = (folder / "report.md").read_text()
  for part in ("ROC-AUC (DeLong)", "Calibration error", "precision 90%", "keep 10%"):
    assert part in report
  assert (folder / "calibration.png").read_bytes().startswith(b"\x89PNG")
  assert run("tiny", folder) == 0
  assert "already complete" in capsys.readouterr().out


def test_the_report_tells_thresholds_of_saturated_scores_apart(tmp_path):
  scores = np.array([0.2, 0.3, *(1 - 10.0 ** -np.arange(5, 13))])
  labels = np.array([False] * 2 + [True] * 8)
  held_out = HeldOut(
    [""] * 10, ("bad", "good"), np.stack([1 - scores, scores], 1), labels, None
  )
  figures = describe_held_out(held_out, "good", seed=0)
  text = write_quality_report(
    tmp_path, figures, scores, labels, positive="good", precision=0.95
  )
  rows = [line.split("|") for line in text.splitlines() if "| keep " in line]
  shown = {row[1].strip(): row[2].strip() for row in rows}
  assert shown["keep 10%"] == "0.999999999999" and shown["keep 20%"] == "0.99999999999"
  assert np.sum(scores >= float(shown["keep 50%"])) == 5


def test_topics_with_thresholds_that_a_step_takes(runs):
  figures = json.loads((runs / "topics" / "figures.json").read_text())
  shares = figures["amplified_share"]
  assert shares["before"] < shares["after"]
  assert shares["after"] == pytest.approx(0.7, abs=0.02)
  assert "Thresholds of topics" in (runs / "topics" / "report.md").read_text()
  step = FilterQualityByTopic(
    quality_model=str(runs / "quality" / "model.npz"),
    topic_model=str(runs / "topics" / "model.npz"),
    thresholds=str(runs / "topics" / "thresholds.json"),
  )
  text = "canvas because of mural. the palette defined as fresco. " * 5
  verdict = step.make_judge()(Document(id="x", text=text))
  assert isinstance(verdict, Keep) and verdict.document.labels["topic"] == "arts"


def test_files_of_annotations_and_of_documents(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  good, bad = "it depends on the proof because", "click here to buy now and"
  rows = [
    {"text": f"{(bad, good)[i % 2]} n{i}", "score": 1 + 3 * (i % 2)} for i in range(400)
  ]
  for name in ("annotations.jsonl", "documents.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert run_web(tmp_path / "web") == 0
  model = load_quality_model(tmp_path / "web" / "model.npz")
  assert model.details["reference_documents"] == 400
  assert model.score(good) > 0.9 > 0.1 > model.score(bad)


@pytest.mark.parametrize(
  "name, setting",
  [("documents", "JsonlSource.path"), ("annotations", "AnnotationFile.path")],
)
def test_a_missing_file_is_said_with_its_setting(
  tmp_path, monkeypatch, capsys, name, setting
):
  monkeypatch.chdir(tmp_path)
  row = json.dumps({"text": "some words", "score": 1})
  for other in {"documents", "annotations"} - {name}:
    (tmp_path / f"{other}.jsonl").write_text(f"{row}\n")
  assert run_web(tmp_path / "web") == 2
  said = capsys.readouterr().err
  assert f"{name}.jsonl does not exist" in said and f"orrect {setting}" in said
  assert ("TrainQualityConfig.reference" in said) == (name == "documents")


def run_web(workdir):
  file = "gin_configs/train_quality/web.gin"
  return cli.main(["train_quality", f"--gin_file={file}", f"--workdir={workdir}"])


def test_thresholds_need_a_quality_model(tmp_path, capsys):
  flag = "--gin.TrainQualityConfig.quality=None"
  assert run("topics_tiny", tmp_path / "topics", flag) == 2
  assert "give both, or neither" in capsys.readouterr().err
