import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.language import (
  LANGUAGES,
  IdentifyLanguage,
  identify_language,
  known_languages,
  sample_text,
)
from phi4_jax.curation.steps import DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document

SENTENCES = {
  "en": "The children went down to the river because the weather was so warm that day.",
  "de": "Die Kinder gingen an den Fluss, weil das Wetter an diesem Tag so warm war.",
  "fr": "Les enfants sont descendus à la rivière car il faisait très chaud ce jour-là.",
  "es": "Los niños bajaron al río porque hacía mucho calor aquel día de verano.",
  "pt": "As crianças desceram até o rio porque naquele dia não fazia frio nenhum.",
  "it": "I bambini sono scesi al fiume perché quel giorno faceva davvero molto caldo.",
  "hi": "बच्चे नदी के किनारे गए क्योंकि उस दिन मौसम बहुत गर्म था।",
  "ja": "その日はとても暖かかったので、子供たちは川へ遊びに行きました。",
}


def judge(text: str, **fields):
  return IdentifyLanguage(**fields).make_judge()(Document(id="d", text=text))


@pytest.mark.parametrize("language", SENTENCES)
def test_the_languages_that_the_paper_names_are_told_apart(language):
  verdict = judge(SENTENCES[language], keep=(language,))
  assert isinstance(verdict, Keep)
  assert verdict.document.labels["language"] == language
  assert verdict.document.labels["language_score"] > 0.5


@pytest.mark.parametrize("language", [name for name in SENTENCES if name != "en"])
def test_other_languages_are_dropped_by_name(language):
  verdict = judge(SENTENCES[language], keep=("en",))
  assert isinstance(verdict, Drop)
  assert verdict.reason == "other_language"
  assert verdict.detail.startswith(f"{language} (") and "kept: en" in verdict.detail


def test_without_a_list_all_are_kept_and_labelled():
  assert isinstance(judge(SENTENCES["fr"]), Keep)
  verdict = judge("1 + 1 = 2")
  assert isinstance(verdict, Keep)
  assert verdict.document.labels == {"language": "und", "language_score": 0.0}


def test_few_letters_and_low_scores_have_reasons_of_their_own():
  assert judge("1 + 1 = 2", keep=("en",)) == Drop(
    "no_letters", "0 letters, 20 required"
  )
  mixed = " ".join(sentence for sentence in SENTENCES.values())
  verdict = judge(mixed, keep=("en",), min_score=1.0)
  assert isinstance(verdict, Drop) and verdict.reason == "uncertain_language"


def test_a_long_text_is_judged_by_three_pieces():
  text = "a" * 500 + "b" * 500 + "c" * 500
  assert sample_text(text, max_characters=300) == "\n".join(
    ("a" * 100, "b" * 100, "c" * 100)
  )
  assert sample_text(text, max_characters=1_500) == text


def test_a_conversation_is_judged_as_a_whole_and_bytes_are_not():
  step = IdentifyLanguage(keep=("de",)).make_judge()
  messages = ({"role": "user", "content": SENTENCES["de"]},)
  assert isinstance(step(Document(id="d", messages=messages)), Keep)
  verdict = step(Document(id="d", data=b"x", media_type="application/pdf"))
  assert verdict == Drop("not_extracted", "application/pdf is no text yet")


def test_the_answer_is_the_same_each_time():
  first = {name: identify_language(text) for name, text in SENTENCES.items()}
  assert first == {name: identify_language(text) for name, text in SENTENCES.items()}


def test_wrong_settings_are_refused():
  assert isinstance(IdentifyLanguage(), DocumentStep)
  for name, meant in (("english", "en"), ("en-US", "en"), ("DE", "de"), ("jpn", "ja")):
    said = rf"keep names '{name}'.* Did you mean '{meant}'\? Known are ace, .*zh"
    with pytest.raises(ConfigError, match=said):
      IdentifyLanguage(keep=("fr", name))
  with pytest.raises(ConfigError, match=r"keep names 'xx', .* language\. Known are"):
    IdentifyLanguage(keep=("xx",))
  assert list(LANGUAGES) == known_languages()
  with pytest.raises(ConfigError, match=r"IdentifyLanguage.min_score \(2.0\)"):
    IdentifyLanguage(min_score=2.0)
  with pytest.raises(ConfigError, match=r"IdentifyLanguage.max_characters \(5\)"):
    IdentifyLanguage(max_characters=5)


def test_the_recipe_names_the_model():
  recipe = IdentifyLanguage(keep=("en",)).recipe()
  assert recipe["step"] == "IdentifyLanguage" and recipe["keep"] == ("en",)
  assert recipe["py3langid"]
