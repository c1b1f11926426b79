"""A finding: what is wrong, in plain words, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cli.plain import plain

Severity = Literal["problem", "warning", "note"]
"""``problem``: something stands still, is lost or goes wrong until somebody acts. ``warning``: the run goes on, slower
or smaller than it could. ``note``: worth knowing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    severity: Severity
    code: str
    """Name of the rule, for programs."""
    subject: str
    """Whom or what it is about."""
    cause: str
    """What is wrong, with the values."""
    do: str
    """What to do about it."""
    symptom: bool = False
    """It may well be the consequence of another finding."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def span(seconds: float) -> str:
    """A duration for people: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def size(count: float) -> str:
    """Bytes for people: ``512 MB`` (powers of 1024)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TB" if count < 100 else f"{count:.0f} TB"


def several(number: int, one: str, many: str = "") -> str:
    """``1 group``, ``2 groups``. ``many``: a plural that is not made with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def names(members: Iterable[str], most: int = 4) -> str:
    """Harmless names in one line, the first few of many."""
    known = [plain(member, 40) for member in members]
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more
