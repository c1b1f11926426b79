"""The table of docs/operations.md that says what `spark status` says, so that it cannot drift from the code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
HEADING = "| problem | `spark status` says | do |"
WILDCARDS = {
    "TIME": r"(\d+ s|\d+ min|\d+ h \d\d min)",
    "SIZE": r"[\d.]+ [kMGT]?B",
    "N": r"[\d.]+",
    "…": r".+",
}
"""What stands in the table for values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented:
    """One row: what is said of a planted problem, and what is to be done about it."""

    problem: str
    cause: str
    do: str

    def fits(self, finding: Mapping[str, Any]) -> bool:
        """A finding of ``spark status --json`` says just that."""
        return bool(re.fullmatch(_pattern(self.cause), finding["cause"])) and bool(
            re.fullmatch(_pattern(self.do), finding["do"])
        )


def documented() -> dict[str, Documented]:
    """Problem -> its row."""
    lines = OPERATIONS.read_text(encoding="utf-8").partition(HEADING)[2].strip().splitlines()[1:]
    rows = [line.strip("| ").split(" | ") for line in lines[: next(i for i, line in enumerate(lines) if not line)]]
    return {problem: Documented(problem=problem, cause=cause, do=do) for problem, cause, do in rows}


def _pattern(text: str) -> str:
    parts = re.split(r"(\bTIME\b|\bSIZE\b|(?<![A-Za-z])N(?![A-Za-z])|…)", text)
    return "".join(WILDCARDS.get(part) or re.escape(part) for part in parts)
