"""How e-mail, phone, IP, card, account and insurance numbers are told from others.

Each kind has a pattern, and a check of what it matches (Luhn, mod 97, ranges, what
stands round it), which is told whether a word before it says what it is. All patterns
look at a bounded number of characters from each place where they may begin.

Knows one match; refuses to know documents and placeholders.
"""

import ipaddress
import re
from collections.abc import Callable

Match = re.Match[str]

# --- e-mail ------------------------------------------------------------------------

_EMAIL = re.compile(
  r"(?<![\w.+/@-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,5}"
  r"([A-Za-z]{2,15})\b(?![@(\[])"
)
# Endings of addresses that are not two letters; a word of code is none of them.
_LONG_DOMAINS = frozenset(
  (
    "com", "org", "net", "edu", "gov", "mil", "int", "info", "biz", "name", "pro",
    "mobi", "app", "dev", "online", "site", "shop", "tech", "cloud", "email", "blog",
    "museum", "aero", "coop", "travel", "jobs",
  )
)  # fmt: skip
# RFC 2606 keeps these for examples: nobody's address.
_RESERVED = re.compile(r"@(?:.*\.)?(?:example\.(?:com|org|net|edu)|test|localhost)$")


def _is_email(match: Match, cued: bool) -> bool:
  ending, address = match[1], match[0]
  if not (ending.islower() or ending.isupper()):
    return False  # q@k.mT is a product of matrices
  if len(ending) > 2 and ending.lower() not in _LONG_DOMAINS:
    return False
  local = address.partition("@")[0]
  if local == "git" or ".." in local or local.endswith("."):
    return False  # git@github.com is a place for code
  return not _RESERVED.search(address.lower())


# --- bank accounts and cards -------------------------------------------------------

_IBAN = re.compile(
  r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?"
  r"(?![A-Za-z0-9])"
)
_CARD = re.compile(
  r"(?<![\w.+/-])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|"
  r"3\d{3}([ -])\d{6}\2\d{5}|\d{13,19})(?![\w/-]|\.\d)"
)
_CARD_CUE = re.compile(
  r"\b(?:card|visa|mastercard|master ?card|amex|american express|credit|debit|"
  r"payment)\b",
  re.IGNORECASE,
)


def is_iban(text: str) -> bool:
  """Checks the check digits of an account number (ISO 13616, mod 97 is 1)."""
  compact = text.replace(" ", "")
  if not 15 <= len(compact) <= 34:
    return False
  digits = "".join(str(int(c, 36)) for c in compact[4:] + compact[:4])
  return int(digits) % 97 == 1


def passes_luhn(digits: str) -> bool:
  """Checks the last digit of a card number (ISO/IEC 7812, Luhn)."""
  total = 0
  for i, digit in enumerate(reversed(digits)):
    value = int(digit) * (1 + i % 2)
    total += value - 9 if value > 9 else value
  return total % 10 == 0


def _is_card(match: Match, cued: bool) -> bool:
  digits = re.sub(r"\D", "", match[0])
  if len(digits) == len(match[0]) and not cued:
    return False  # a long number; one in ten passes the check below
  first, size = int(digits[:4]), len(digits)
  known = (
    (digits[0] == "4" and size in (13, 16, 19))
    or ((5100 <= first < 5600 or 2221 <= first < 2721) and size == 16)
    or (first // 100 in (34, 37) and size == 15)
    or (first // 100 in (36, 38) and size >= 14)
    or ((first == 6011 or first // 100 == 65 or 3528 <= first < 3590) and size >= 16)
  )
  return known and passes_luhn(digits)


# --- social security ---------------------------------------------------------------

_SSN = re.compile(r"(?<![\w.+/-])(\d{3})-(\d{2})-(\d{4})(?![\w/-]|\.\d)")
_SSN_CUE = re.compile(r"\b(?:ssn|social security|tax(?:payer)? id)\b", re.IGNORECASE)
_ARITHMETIC_BEFORE = re.compile(r"[-=+*/^<>($\\][ \t]*$")
_ARITHMETIC_AFTER = re.compile(r"[ \t]*[=+*/^<>)$\\]")


def _is_ssn(match: Match, cued: bool) -> bool:
  area, group, serial = match[1], match[2], match[3]
  if area in ("000", "666") or area >= "900" or group == "00" or serial == "0000":
    return False  # never given out
  return cued or not _looks_like_arithmetic(match)


def _looks_like_arithmetic(match: Match) -> bool:
  text = match.string
  before = text[max(0, match.start() - 3) : match.start()]
  return bool(
    _ARITHMETIC_BEFORE.search(before) or _ARITHMETIC_AFTER.match(text, match.end())
  )


# --- addresses of machines ---------------------------------------------------------

_IP = re.compile(
  r"(?<![\w.:/-])(?:\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"
  r"|[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){3,7}(?![\w:]))"
)
_VERSION = re.compile(
  r"(?:\bv|version|release|section|chapter|clause|table|figure|[=<>~^]=?|§)\s*$",
  re.IGNORECASE,
)
_IP_CUE = re.compile(r"\b(?:ip|host|server|address|client|from)\b", re.IGNORECASE)


def _is_ip(match: Match, cued: bool) -> bool:
  before = match.string[max(0, match.start() - 12) : match.start()]
  if "." in match[0] and _VERSION.search(before):
    return False
  try:
    address = ipaddress.ip_address(match[0])
  except ValueError:
    return False
  # 10.0.0.1 is in every house; and two colons are also C++.
  if address.version == 6 and address not in _GLOBAL_UNICAST:
    return False
  return address.is_global


_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")

# --- phone --------------------------------------------------------------------------

_PHONE = re.compile(
  r"(?<![\w.+/=*^-])(?:\+[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,5}+\)?){1,6}"  # +49 30 123456
  r"|\([2-9]\d{2}\) ?[2-9]\d{2}[ .-]\d{4}"  # (212) 555-0100
  r"|[2-9]\d{2}([.-])[2-9]\d{2}\1\d{4}"  # 212-555-0100
  r"|0\d{1,4}(?:[ ./-]\d{2,8}){1,4})"  # 030 1234567, only after a word
  r"(?![\w/]|[.,]\d|-\d)"
)
_PHONE_CUE = re.compile(
  r"\b(?:phone|tel|telephone|telefon|tél|téléphone|teléfono|call|fax|mobile|cell|"
  r"handy|whatsapp|sms|dial|contact)\b",
  re.IGNORECASE,
)
_THOUSANDS = re.compile(r"\+\d{1,3}(?:[ .]\d{3})+$")


def _is_phone(match: Match, cued: bool) -> bool:
  text = match[0]
  digits = sum(character.isdigit() for character in text)
  if not 8 <= digits <= 15:
    return False
  if cued:
    return True
  if text.startswith("0"):
    return False
  if text.startswith("+") and (text[1:].isdigit() or _THOUSANDS.match(text)):
    return False  # a sign and a number
  before = match.string[max(0, match.start() - 2) : match.start()].strip()
  if before[-1:].isdigit() or before[-1:] == ")":
    return False  # 3 +12 34
  return not _looks_like_arithmetic(match)


_Check = Callable[[Match, bool], bool]
KINDS: dict[str, tuple[re.Pattern[str], _Check, re.Pattern[str] | None]] = {
  "email": (_EMAIL, _is_email, None),
  "iban": (_IBAN, lambda match, cued: is_iban(match[0]), None),
  "card": (_CARD, _is_card, _CARD_CUE),
  "ssn": (_SSN, _is_ssn, _SSN_CUE),
  "ip": (_IP, _is_ip, _IP_CUE),
  "phone": (_PHONE, _is_phone, _PHONE_CUE),
}
# What they are can be told without a word before them, in code, too.
SELF_EVIDENT = frozenset(("email", "iban"))
