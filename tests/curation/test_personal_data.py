import random

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation import personal_data
from phi4_jax.curation.personal_data import MaskPersonalData, find_personal_data
from phi4_jax.curation.personal_data_kinds import is_iban, passes_luhn
from phi4_jax.curation.steps import DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document


def mask(text: str, **fields) -> str:
  verdict = MaskPersonalData(**fields).make_judge()(Document(id="d", text=text))
  assert isinstance(verdict, Keep)
  return verdict.document.text or ""


@pytest.mark.parametrize(
  "text, masked",
  [
    ("Write to jane.doe@uni-koeln.de.", "Write to [EMAIL]."),
    ("<a.b+c@mail.company.com>", "<[EMAIL]>"),
    ("JANE@COMPANY.COM wrote", "[EMAIL] wrote"),
    ("mail = 'jane@company.org'", "mail = '[EMAIL]'"),
    ("Call +49 30 901820 today", "Call [PHONE] today"),
    ("Phone: (212) 555-0142.", "Phone: [PHONE]."),
    ("reach me at 212-555-0142, please", "reach me at [PHONE], please"),
    ("Tel. 030 9018-2000", "Tel. [PHONE]"),
    ("fax +442079460958", "fax [PHONE]"),
    ("server at 8.8.4.4 is up", "server at [IP] is up"),
    ("from 2a00:1450:4001:82a:0:0:0:200e", "from [IP]"),
    ("Pay 4111 1111 1111 1111 now", "Pay [CARD] now"),
    ("5555-5555-5555-4444", "[CARD]"),
    ("Amex 3782 822463 10005", "Amex [CARD]"),
    ("card number 4111111111111111", "card number [CARD]"),
    ("IBAN DE89 3704 0044 0532 0130 00", "IBAN [IBAN]"),
    ("GB29NWBK60161331926819,", "[IBAN],"),
    ("SSN: 219-09-9999", "SSN: [SSN]"),
    ("her number is 219-09-9999 she said", "her number is [SSN] she said"),
    ("`ssh jane@host.company.com`", "`ssh [EMAIL]`"),
  ],
)
def test_personal_data_is_masked(text, masked):
  assert mask(text) == masked


@pytest.mark.parametrize(
  "text",
  [
    # Code.
    "scores = q@k.mT",
    "y = x @ W.T + b",
    "out = a@b.transpose(1, 2)",
    "@app.route('/x')",
    "git clone git@github.com:owner/name.git",
    "pip install package==1.2.3.4",
    "version 8.8.4.4 of it",
    "std::vector<int>::iterator",
    "a::b::c::d::e",
    "0xDEADBEEF 12:34:56:78:9a:bc",
    "seed = 4111111111111111",
    "```\nx = 212-555-0142\n```",
    "`212-555-0142`",
    "id = 123e4567-e89b-12d3-a456-426614174000",
    # Mathematics.
    "$212-555-0142 = -485$",
    "212-555-0142 = -485",
    "Compute 219-09-9999 + 3.",
    "3.14159265358979323846",
    "12345678 + 87654321 = 99999999",
    "+12 345 678",
    "2 +12 34 56 78",
    "6011 + 1111 = 7122",
    "1 234 567 890 123",
    # Other numbers.
    "ISBN 978-3-16-148410-0",
    "on 2024-11-26 at 10:48:07",
    "10.0.0.1 and 127.0.0.1 and 192.168.1.1",
    "256.8.8.8",
    "Section 8.8.4.4",
    "000-12-3456 and 666-12-3456 and 123-00-4567",
    "4111 1111 1111 1112",
    "DE89 3704 0044 0532 0130 01",
    "0123 4567 8901",
    # Nobody's address.
    "Write to you@example.com or me@localhost",
    "Write to a@mail.example.edu or b@host.test, or look at 192.0.2.7",
    "arXiv:2412.08905, doi:10.1000/182",
  ],
)
def test_code_mathematics_and_other_numbers_are_left_alone(text):
  assert mask(text) == text


def test_random_numbers_are_rarely_taken_for_personal_data():
  rng = random.Random(0)
  texts = [
    f"{rng.randrange(10**k)} {rng.choice('+-*/=')} {rng.randrange(10**k)} is what it is"
    for k in (3, 5, 8, 10, 13, 16, 19)
    for _ in range(1_000)
  ]
  kinds = MaskPersonalData().kinds
  found = [text for text in texts if find_personal_data(text, kinds=kinds)]
  assert not found, found[:5]


def test_counts_and_lineage_are_kept_in_the_document():
  text = "a.b@c-company.com, d@e-company.com and +49 30 901820 00"
  verdict = MaskPersonalData().make_judge()(Document(id="d", text=text))
  assert isinstance(verdict, Keep)
  assert verdict.document.labels == {"personal_data": {"email": 2, "phone": 1}}
  assert verdict.document.lineage == ("step:MaskPersonalData",)
  untouched = Document(id="d", text="nothing")
  assert MaskPersonalData().make_judge()(untouched) == Keep(untouched)


def test_each_turn_of_a_conversation_is_masked():
  messages = (
    {"role": "user", "content": "I am jane@company.com"},
    {"role": "assistant", "content": "Hello!"},
  )
  verdict = MaskPersonalData().make_judge()(Document(id="d", messages=messages))
  assert isinstance(verdict, Keep) and verdict.document.messages is not None
  assert verdict.document.messages[0]["content"] == "I am [EMAIL]"
  assert verdict.document.messages[1] == messages[1]


def test_masking_twice_changes_nothing_more():
  text = "jane@company.com 4111 1111 1111 1111 +49 30 90182000 SSN 219-09-9999"
  assert mask(mask(text)) == mask(text)


def test_kinds_and_placeholder_are_settings():
  text = "jane@company.com, 8.8.4.4"
  assert mask(text, kinds=("ip",)) == "jane@company.com, [IP]"
  assert mask(text, placeholder="<|{kind}|>") == "<|EMAIL|>, <|IP|>"


@pytest.mark.parametrize("placeholder", ["x", "{name}", "{kind", "1{kind}"])
def test_wrong_settings_are_refused(placeholder):
  assert isinstance(MaskPersonalData(), DocumentStep)
  with pytest.raises(ConfigError, match="MaskPersonalData.placeholder"):
    MaskPersonalData(placeholder=placeholder)
  with pytest.raises(ConfigError, match=r"MaskPersonalData.kinds \(name\).*email"):
    MaskPersonalData(kinds=("name",))


def test_check_digits():
  assert passes_luhn("79927398713") and not passes_luhn("79927398710")
  assert is_iban("FR14 2004 1010 0505 0001 3M02 606")
  assert not is_iban("FR14 2004 1010 0505 0001 3M02 607")


def test_bytes_are_not_searched():
  document = Document(id="d", data=b"x", media_type="text/html")
  verdict = MaskPersonalData().make_judge()(document)
  assert verdict == Drop("not_extracted", "text/html is no text yet")


@pytest.mark.parametrize(
  "text",
  ["a@" * 50_000, "1-" * 50_000, "+1 " * 50_000, "1.2." * 50_000, "A" * 100_000]
  + ["`" * 100_000, "$a" * 50_000, "\\(" * 50_000, "+1" + " 1" * 100_000]
  # Numbers that could be parted in thousands of ways: minutes, if all were tried.
  + [(" +" + "1234567890" * 3 + "a") * 30_000],
  ids=range(10),
)
def test_hostile_texts_are_searched_in_one_pass(text):
  # With a number in front, so that code and formulas are looked for, too.
  assert mask(f"212-555-0142\n{text}").startswith("[PHONE]\n")


# Of each only the last, or the first, is told before its neighbours are gone.
CHAINS = {
  "to the left": ("{}", ",212-555-0142"),
  "to the right": ("Tel. {}", " 030 90182000,"),
  "without blanks": ("Tel. {}", "+49 30 90182000"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_each_number_of_a_chain_is_told_from_its_neighbours(name):
  before, number = CHAINS[name]
  masked = mask(before.format(number * 30))
  assert masked.count("[PHONE]") == 30
  assert not any(character.isdigit() for character in masked)


@pytest.mark.parametrize("name", CHAINS)
def test_the_work_for_a_chain_grows_with_its_length(name, monkeypatch):
  searched = 0
  search = personal_data._search

  def counted(text, *args, **kwargs):
    nonlocal searched
    searched += len(text)
    return search(text, *args, **kwargs)

  monkeypatch.setattr(personal_data, "_search", counted)
  before, number = CHAINS[name]
  work = []
  for count in (500, 1_000, 10_000):
    searched = 0
    assert mask(before.format(number * count)).count("[PHONE]") == count
    work.append(searched / count)
  assert max(work) < 1.1 * min(work)


def test_code_stays_code_when_what_is_in_it_is_masked():
  text = "`call 212-555-0142` and `x = 212-555-0143` and 212-555-0144"
  # The name of what is blotted out is a word that says what the next one is.
  assert mask(text) == "`call [PHONE]` and `x = [PHONE]` and [PHONE]"
  far = "`call 212-555-0142`" + " and" * 20 + " `x = 212-555-0143`"
  assert mask(far) == "`call [PHONE]`" + " and" * 20 + " `x = 212-555-0143`"


def test_a_word_that_comes_closer_by_masking_says_what_a_number_is():
  text = "Tel. 2a00:1450:4001:82a:0:0:0:200e (the office), 030 90182000"
  assert mask(text) == "Tel. [IP] (the office), [PHONE]"


def test_a_list_is_masked_with_any_placeholder():
  text = "Tel. 030 90182000, 030 90182001, 030 90182002\r\n212-555-0142"
  masked = mask(text)
  assert masked == "Tel. [PHONE], [PHONE], [PHONE]\r\n[PHONE]"
  other = mask(text, placeholder="<a long one, for {kind}, that says much more>")
  assert other.count("PHONE") == 4 and "0" not in other
