"""Numbers, moments and foreign text as the report writes them. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

from cli.plain import plain

_HARMLESS: Final = re.compile("([\u00a0\u2002-\u200a\u200c\u200d\u202f\u3000\n])")
"""Line ends, spaces, and the joiners of many scripts: Python does not call them printable, but they steer nothing."""
NEVER: Final = "–"
"""Stands where nothing was measured."""


def percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"  # the two stay on one line


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def number(value: float) -> str:
    if value != value or abs(value) == float("inf"):
        return "not finite"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}".replace("e-0", "e-")


def seconds(duration: float) -> str:
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{duration:.1f} s"


def training_time(wall_s: float, paused_s: float) -> str:
    """Without the pauses, which are told beside it."""
    paused_s = min(paused_s, wall_s)
    return f"{seconds(wall_s - paused_s)}, and {seconds(paused_s)} paused" if paused_s else seconds(wall_s)


def when(moment: datetime) -> str:
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def count(amount: int, thing: str) -> str:
    """``1 step``, ``1,200 steps``."""
    return f"{amount:,} {thing}{'' if amount == 1 else 's'}"


def listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def visible(value: Any) -> Any:
    """Text in which nothing hides: characters that steer a screen or turn the direction of reading are written out.

    Jinja2 gives every value through this before it escapes it; what is no plain text stays as it is.
    """
    if type(value) is not str:
        return value
    return "".join(part if _HARMLESS.fullmatch(part) else plain(part) for part in _HARMLESS.split(value.expandtabs(4)))


def clipped(text: str, most: int) -> str:
    """The beginning and the end of a long text, with how much is missing between them."""
    if len(text) <= most:
        return text
    end = most // 3
    start = most - end
    return f"{text[:start]}\n[… {len(text) - most:,} characters left out …]\n{text[-end:]}"
