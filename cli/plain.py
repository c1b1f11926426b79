"""Foreign text for a terminal: what came in a message must not steer the screen of whoever looks at it."""

from __future__ import annotations

import unicodedata
from typing import Final

MOST_MARKS: Final = 3
"""Combining marks on one character; a tower of them covers the lines above."""


def plain(text: str, most: int | None = None) -> str:
    """One line without control characters, escape sequences, or marks that turn the direction of text.

    They are shown as Python would write them. ``most``: longer text is cut, and says how long it was.
    """
    cut = text if most is None else text[:most]
    shown, marks = [], 0
    for character in cut:
        marks = marks + 1 if unicodedata.combining(character) else 0
        harmless = character.isprintable() and marks <= MOST_MARKS
        shown.append(character if harmless else character.encode("unicode_escape").decode("ascii"))
    rest = f" ... ({len(text)} characters)" if len(cut) < len(text) else ""
    return "".join(shown) + rest
