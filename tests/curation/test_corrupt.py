"""Corruptions are made from clean text and told from it; the floors are measured."""

import base64
import itertools
import pydoc_data.topics
import random

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.corrupt import (
  DropCorruptText,
  compression_ratio,
  control_fraction,
  fit_ngram_statistics,
  load_ngram_statistics,
  mojibake_fraction,
  save_ngram_statistics,
)
from phi4_jax.curation.steps import DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document

# Sentences with accents, of which texts are put together in every order.
_ACCENTS = [
  "Für die Prüfung müssen die Schüler über die Größe der Flüsse Bescheid wissen.",
  "Später hörte man, daß die Mädchen schöne Äpfel auf dem Markt verkaufen möchten.",
  "L’élève a répondu très tôt, même si la leçon était très difficile à réciter.",
  "Où étaient donc les forêts près du château, là où la fête a été préparée ?",
  "El niño pidió también un café pequeño, y después salió a la calle sin decir adiós.",
  "¿Cuántos años tenía la señora cuando llegó aquí con su corazón lleno de canción?",
]


def clean_texts() -> list[str]:
  """English from the Python manual and accented texts, about 2,000 characters each."""
  manual = "\n\n".join(pydoc_data.topics.topics[key] for key in _topics())
  english = [manual[i : i + 2_000] for i in range(0, 400_000, 2_000)]
  rng = random.Random(0)
  orders = list(itertools.permutations(_ACCENTS))
  accented = []
  for _ in range(100):
    sentences = [" ".join(rng.choice(orders)) for _ in range(3)]
    accented.append("\n".join(sentences))
  mixed = english + accented
  rng.shuffle(mixed)
  return mixed


def _topics() -> list[str]:
  return sorted(pydoc_data.topics.topics)


def shuffled(text: str, rng: random.Random) -> str:
  characters = list(text)
  rng.shuffle(characters)
  return "".join(characters)


def mojibake(text: str, rng: random.Random) -> str:
  return text.encode().decode("latin-1")


def in_base64(text: str, rng: random.Random) -> str:
  return base64.encodebytes(rng.randbytes(len(text) * 3 // 4)).decode()


def repeated_lines(text: str, rng: random.Random) -> str:
  line = text[:80].replace("\n", " ")
  return "\n".join([line] * (len(text) // 80))


def bad_scan(text: str, rng: random.Random) -> str:
  """A tenth of the letters is read as something else."""
  other = "1l|!il0OQ{}[]()rnmvwcl~^'`.,;:§¢£"
  return "".join(
    rng.choice(other) if c.isalpha() and rng.random() < 0.1 else c for c in text
  )


def auc(clean: np.ndarray, corrupt: np.ndarray) -> float:
  """Returns how often a corrupt text has the higher score (half for a tie)."""
  wins = (corrupt[:, None] > clean[None, :]).mean()
  return float(wins + 0.5 * (corrupt[:, None] == clean[None, :]).mean())


@pytest.fixture(scope="module")
def corpus():
  texts = clean_texts()
  return texts[:200], texts[200:]


@pytest.fixture(scope="module")
def statistics(corpus):
  return fit_ngram_statistics(corpus[0])


@pytest.fixture(scope="module")
def judge(statistics, tmp_path_factory):
  path = tmp_path_factory.mktemp("statistics") / "ngrams.npz"
  save_ngram_statistics(path, statistics)
  return DropCorruptText(statistics=str(path)).make_judge()


def z_scores(statistics, texts):
  return np.array([statistics.z_score(text.encode()) for text in texts])


# Measured with this seed: 1.000, 1.000 and 0.948. One wrong letter in ten leaves some
# prose within what manuals with code and grammars in them cost.
@pytest.mark.parametrize(
  "corrupt, floor", [(shuffled, 0.999), (in_base64, 0.999), (bad_scan, 0.93)]
)
def test_byte_pairs_tell_corrupt_from_clean(corpus, statistics, corrupt, floor):
  rng = random.Random(1)
  clean = z_scores(statistics, corpus[1])
  broken = z_scores(statistics, [corrupt(text, rng) for text in corpus[1]])
  assert auc(clean, broken) >= floor


def test_mojibake_is_told_where_there_are_accents(corpus, statistics):
  rng = random.Random(1)
  accented = [text for text in corpus[1] if mojibake(text, rng) != text]
  accented = [text for text in accented if mojibake_fraction(mojibake(text, rng)) > 0]
  assert len(accented) >= 30
  clean = np.array([mojibake_fraction(text) for text in accented])
  broken = np.array([mojibake_fraction(mojibake(text, rng)) for text in accented])
  assert clean.max() == 0
  assert auc(clean, broken) == 1


def test_compression_tells_repetition_and_randomness(corpus):
  rng = random.Random(1)
  clean = np.array([compression_ratio(text.encode()) for text in corpus[1]])
  repeated = [repeated_lines(text, rng) for text in corpus[1]]
  low = np.array([compression_ratio(text.encode()) for text in repeated])
  assert auc(-clean, -low) >= 0.999
  high = [in_base64(text, rng) for text in corpus[1]]
  assert auc(clean, np.array([compression_ratio(t.encode()) for t in high])) >= 0.999


@pytest.mark.parametrize(
  "corrupt, reasons, share",
  [
    (shuffled, {"ngram_outlier"}, 0.97),
    (in_base64, {"too_random"}, 1.0),
    (repeated_lines, {"too_compressible"}, 1.0),
  ],
)
def test_corrupt_texts_are_dropped_with_their_reason(
  corpus, judge, corrupt, reasons, share
):
  rng = random.Random(2)
  verdicts = [judge(Document(id="d", text=corrupt(t, rng))) for t in corpus[1]]
  found = [v for v in verdicts if isinstance(v, Drop) and v.reason in reasons]
  assert len(found) >= share * len(verdicts)


def test_clean_texts_are_kept(corpus, judge):
  verdicts = [judge(Document(id="d", text=text)) for text in corpus[1]]
  dropped = [verdict for verdict in verdicts if isinstance(verdict, Drop)]
  assert not dropped, dropped[:3]


@pytest.mark.parametrize(
  "text, reason",
  [
    ("one\x00two\x01three", "control_characters"),
    ("Caf\ufffd is what was read here.", "replacement_characters"),
    ("FÃ¼r die PrÃ¼fung", "mojibake"),
    ("It isnâ€™t what it was", "mojibake"),
    ("\x1b[31mred\x1b[0m", "control_characters"),
  ],
)
def test_bad_characters_have_reasons(text, reason):
  verdict = DropCorruptText().make_judge()(Document(id="d", text=text))
  assert isinstance(verdict, Drop) and verdict.reason == reason
  assert "allowed" in verdict.detail


@pytest.mark.parametrize(
  "text", ["Ça va très bien.", "SÃO PAULO", "Âge d’or", "x ≤ y", "日本語", "a\tb\nc"]
)
def test_good_characters_are_not_complained_about(text):
  assert mojibake_fraction(text) == 0
  assert control_fraction(text) == 0
  assert isinstance(DropCorruptText().make_judge()(Document(id="d", text=text)), Keep)


def test_bits_a_byte_are_those_of_the_counts():
  texts = ["abab"] * 40
  statistics = fit_ngram_statistics(texts, smoothing=0.5)
  # Twenty texts were counted: "ab" 40 times, "ba" 20 times; each row has 256 pairs.
  ab, ba = (40.5 / (40 + 128)), (20.5 / (20 + 128))
  wanted = -(2 * np.log2(ab) + np.log2(ba)) / 3
  assert statistics.bits_per_byte(b"abab") == pytest.approx(wanted, rel=1e-6)
  assert statistics.mean == pytest.approx(wanted, rel=1e-6)


def test_the_recipe_follows_the_content_of_the_file(statistics, tmp_path):
  for name in ("a.npz", "b.npz"):
    save_ngram_statistics(tmp_path / name, statistics)
  first, second = (
    DropCorruptText(statistics=str(tmp_path / name)).recipe()
    for name in ("a.npz", "b.npz")
  )
  assert first == second
  assert len(first["statistics"]) == 64
  loaded = load_ngram_statistics(tmp_path / "a.npz")
  assert np.array_equal(loaded.log2_probs, statistics.log2_probs)
  other = fit_ngram_statistics([text * 3 for text in _ACCENTS * 5])
  save_ngram_statistics(tmp_path / "b.npz", other)
  assert DropCorruptText(statistics=str(tmp_path / "b.npz")).recipe() != first


def test_wrong_settings_and_files_are_refused(tmp_path):
  assert isinstance(DropCorruptText(), DocumentStep)
  with pytest.raises(ConfigError, match="does not exist.*fit_ngram_statistics"):
    DropCorruptText(statistics=str(tmp_path / "none.npz")).make_judge()
  (tmp_path / "bad.npz").write_bytes(b"no archive")
  with pytest.raises(ConfigError, match="holds no n-gram statistics"):
    DropCorruptText(statistics=str(tmp_path / "bad.npz")).make_judge()
  with pytest.raises(ConfigError, match="min_compression_ratio"):
    DropCorruptText(min_compression_ratio=0.9)
  with pytest.raises(ConfigError, match="max_mojibake_fraction"):
    DropCorruptText(max_mojibake_fraction=2.0)
  with pytest.raises(ConfigError, match="was given 3 texts"):
    fit_ngram_statistics(["abc"] * 3)


def test_bytes_and_empty_texts_are_judged():
  judge = DropCorruptText().make_judge()
  document = Document(id="d", data=b"x", media_type="image/png")
  assert judge(document) == Drop("not_extracted", "image/png is no text yet")
  assert isinstance(judge(Document(id="d", text="")), Keep)
