"""metrics.jsonl, read whole or as it grows. One row is one line: metric name -> number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Row = Mapping[str, float]
STEP: Final = "policy_version"
PAUSED: Final = "seconds/paused"


class MetricsReader:
    """Reads what was appended since the last call. A torn last line waits until it is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = 0
        """Complete lines that are no metrics: a learner that was killed leaves a torn one in the middle."""
        self.torn = False
        """The file ends in the middle of a line."""
        self._offset = 0

    def read(self) -> list[Row]:
        """The new rows; none while there is no file."""
        lines = self._new_bytes().split(b"\n")
        rest = lines.pop()
        self._offset += sum(len(line) + 1 for line in lines)
        self.torn = bool(rest)
        rows = [parse(line) for line in lines if line.strip()]
        self.skipped += rows.count(None)
        return [row for row in rows if row is not None]

    def _new_bytes(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:  # another run took the file's place
                    self._offset = 0
                file.seek(self._offset)
                return file.read()
        except FileNotFoundError:
            return b""


def parse(line: bytes) -> Row | None:
    """The numbers of a line; None when it holds no step's metrics."""
    try:
        values = json.loads(line)
    except ValueError:  # also bytes that are no UTF-8
        return None
    if not isinstance(values, dict):
        return None
    row = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return row if STEP in row else None


def without_repeats(rows: Iterable[Row]) -> list[Row]:
    """A resumed learner makes the steps after its checkpoint again: of each step, the last line counts."""
    kept: list[Row] = []
    for row in rows:
        while kept and kept[-1][STEP] >= row[STEP]:
            kept.pop()
        kept.append(row)
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The steps of a run, in order."""

    rows: tuple[Row, ...] = ()
    skipped: int = 0
    """Lines that could not be read, a torn last one included."""
    repeated: int = 0
    """Lines replaced by those of a resumed learner."""

    @property
    def steps(self) -> list[float]:
        return self.column(STEP)

    def column(self, name: str) -> list[float]:
        """One value per row; NaN where the row has none."""
        return [row.get(name, float("nan")) for row in self.rows]

    def numbered(self, prefix: str) -> list[tuple[str, int]]:
        """Metrics named ``prefix`` and a number, with that number; in its order."""
        names = {name for row in self.rows for name in row if name.startswith(prefix)}
        found = [(name, int(rest)) for name in names if (rest := name.removeprefix(prefix)).isdecimal()]
        return sorted(found, key=lambda pair: pair[1])

    def total(self, prefix: str) -> list[float]:
        """Per row, the sum over all metrics whose names start with ``prefix``."""
        return [total(row, prefix) for row in self.rows]

    def busy(self) -> list[float]:
        """Per row, the seconds of the learner's time without pauses."""
        return [busy_s(row) for row in self.rows]


def total(row: Row, prefix: str) -> float:
    return sum(value for name, value in row.items() if name.startswith(prefix))


def paused_s(rows: Iterable[Row]) -> float:
    """Seconds that a user held the run back, as far as a step came after them."""
    return sum(row.get(PAUSED, 0.0) for row in rows)


def busy_s(row: Row) -> float:
    """Seconds of the learner's time, pauses left out."""
    return total(row, "seconds/") - row.get(PAUSED, 0.0)


def read_history(path: Path) -> History:
    reader = MetricsReader(path)
    rows = reader.read()
    kept = without_repeats(rows)
    return History(rows=tuple(kept), skipped=reader.skipped + reader.torn, repeated=len(rows) - len(kept))
