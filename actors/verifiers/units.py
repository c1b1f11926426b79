"""Words and units of a math answer, which math-verify drops: ``5 cm`` and ``5 km`` are both 5 to it."""

import re

_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_AREA = re.compile(r"\b(?:square|sq\.?)\s+([A-Za-z]+)")
_VOLUME = re.compile(r"\b(?:cubic|cu\.?)\s+([A-Za-z]+)")
_EXPONENT = re.compile(r"(?<=[^\W\d_])\}?\s*\^\s*\{?\s*(\d)\s*\}?")
_WORD = re.compile(r"[^\W\d_]+\d?|[$€£¥]")
_SUBSCRIPT = re.compile(r"\d\s*_\s*\{?\s*(\d+)\s*\}?")

NOT_A_UNIT = frozenset(
    {"and", "or", "e", "i", "pi", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt"}
)
SPELLINGS = {
    "millimeter": "mm", "millimetre": "mm", "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "pound": "lb", "lbs": "lb", "ounce": "oz", "liter": "l", "litre": "l",
    "milliliter": "ml", "millilitre": "ml", "second": "s", "minute": "min", "mins": "min", "hour": "h", "hr": "h",
    "hrs": "h", "dollar": "$", "euro": "€", "degree": "deg", "degs": "deg",
}  # fmt: skip


_LONG_UNITS = "|".join(re.escape(word) for word in {*SPELLINGS, *SPELLINGS.values()} if len(word) > 1)
_TRAILING = re.compile(
    rf"(?<=[\d)}}])\s*(?:(?:square|sq\.?|cubic)\s+)?(?:{_LONG_UNITS})s?(?:\s*\^\s*\{{?\s*\d\s*\}}?)?$",
    re.IGNORECASE,
)


def without_unit(text: str) -> str:
    """``text`` less a unit at its end and a currency sign: math-verify knows only some, and none of ``cm^2``.

    One-letter units stay: they may be variables.
    """
    return re.sub(r"[€£¥]", "", _TRAILING.sub("", text)).strip()


def units(text: str, letters: frozenset[str]) -> tuple[str, ...]:
    """Words, currency signs and number bases in ``text``, in order and spelt one way, exponents attached.

    LaTeX commands and functions are no words, nor is what consists of ``letters`` (the variables ``text`` was
    read with): of ``5\\text{ square meters}`` it is ``("m2",)``.
    """
    bases = tuple(f"base{base}" for base in _SUBSCRIPT.findall(text))
    return tuple(_spelling(word) for word in _words(text) if not _consumed(word, letters)) + bases


def is_prose(text: str, letters: frozenset[str]) -> bool:
    """Was a word read as a product of variables? Then anagrams would be equal (``listen``, ``silent``)."""
    return any(len(word) >= 4 and _consumed(word, letters) for word in _words(text))


def _words(text: str) -> list[str]:
    text = _COMMAND.sub(" ", text)
    text = _EXPONENT.sub(r"\1 ", _VOLUME.sub(r"\1^3", _AREA.sub(r"\1^2", text)))
    return [word for word in _WORD.findall(text.casefold()) if word not in NOT_A_UNIT]


def _consumed(word: str, letters: frozenset[str]) -> bool:
    return word[0].isalpha() and set(word.rstrip("0123456789")) <= letters


def _spelling(word: str) -> str:
    stem = word.rstrip("0123456789")
    singular = stem[:-1] if len(stem) > 3 and stem.endswith("s") else stem
    return SPELLINGS.get(stem, SPELLINGS.get(singular, singular)) + word[len(stem) :]
