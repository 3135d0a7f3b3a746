"""Chat templates run as in transformers, and cannot reach out."""

import datetime

import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.data.jinja_template import JinjaTemplate

TALK = [{"role": "user", "content": "<b>\u00e9"}]


def render(source, *, prompt=False, **tokens):
  return JinjaTemplate(source).render(TALK, prompt=prompt, tokens=tokens)


def test_blocks_are_trimmed_as_in_transformers():
  source = (
    "{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n{% endif %}\n"
    "{% endfor %}"
  )
  assert render(source) == "user\n"


def test_what_a_template_may_use():
  assert render("{{ bos_token }}{{ messages[0]['content'] }}", bos_token="<s>") == (
    "<s><b>\u00e9"
  )
  assert render("{{ messages | tojson }}") == (
    '[{"role": "user", "content": "<b>\u00e9"}]'
  )
  assert render("{{ messages | tojson(indent=1) }}").startswith("[\n {")
  assert render("{% if tools %}x{% endif %}{{ eos_token }}", eos_token=None) == ""
  assert render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)
  source = (
    "{% for i in [1, 2] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
  )
  assert render(source) == "1"
  source = "{% generation %}{{ messages[0].role }}{% endgeneration %}"
  assert render(source) == "user"
  assert render("{% if add_generation_prompt %}go{% endif %}", prompt=True) == "go"


def test_a_template_that_fails_says_why():
  with pytest.raises(DataError, match="roles must alternate"):
    render("{{ raise_exception('roles must alternate') }}")
  with pytest.raises(DataError, match="cannot be read"):
    JinjaTemplate("{% for %}")
  with pytest.raises(DataError, match="chat template failed"):
    render("{{ 1 / 0 }}")


@pytest.mark.parametrize(
  "source",
  [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
  ],
)
def test_a_template_stays_in_its_sandbox(source):
  with pytest.raises(DataError, match="chat template failed"):
    render(source)
