"""The tables of the report as plain rows (pure): before and after, the ledger, the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from cli.report.material import Interval, Material
from common.messages import OUTCOMES

Verdict = Literal["better", "worse", "unclear"]
FIGURES: Final = (
    ("policy", "Policy accuracy", "one sampled answer per prompt", "up"),
    ("pointwise", "Pointwise judge", "balanced accuracy: mean of the next two", "up"),
    ("tpr", "Right answers accepted", "TPR", "up"),
    ("tnr", "Wrong answers rejected", "TNR", "up"),
    ("pairwise", "Pairwise judge", "picks the right one of two, both orders", "up"),
    ("fix", "Reflection fixes", "wrong answers it repairs", "up"),
    ("break", "Reflection breaks", "right answers it spoils: lower is better", "down"),
    ("tts", "Test-time scaling", "answer, judge, answer again where the judge says no", "up"),
)
"""Key, name, explanation, and the direction that is an improvement."""
ARMS: Final = ("before", "after")
STALE_ALARM: Final = 0.02
"""Above this share, dropping slow groups biases training towards easy prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure of one arm; all shares in [0, 1]."""

    value: float
    interval: Interval | None
    n: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureRow:
    key: str
    name: str
    explanation: str
    cells: Mapping[str, Cell]
    """By arm; an arm without the figure is absent."""
    direction: str

    @property
    def change(self) -> float | None:
        return self.cells["after"].value - self.cells["before"].value if len(self.cells) == len(ARMS) else None

    @property
    def verdict(self) -> Verdict:
        """Clear only if the two intervals do not touch, which is stricter than a test of the difference."""
        before, after = (self.cells[arm].interval if arm in self.cells else None for arm in ARMS)
        if self.change is None or before is None or after is None:
            return "unclear"
        if before[0] <= after[1] and after[0] <= before[1]:
            return "unclear"
        return "better" if (self.change > 0) == (self.direction == "up") else "worse"


def figure_rows(material: Material) -> list[FigureRow]:
    """The figures that at least one arm has."""
    rows = []
    for key, name, explanation, direction in FIGURES:
        cells = {arm: cell for arm in ARMS if (cell := _cell(material, arm, key)) is not None}
        if cells:
            rows.append(FigureRow(key=key, name=name, explanation=explanation, cells=cells, direction=direction))
    return rows


def _cell(material: Material, arm: str, key: str) -> Cell | None:
    value = (getattr(material.summary, arm) or {}).get(key)
    if value is None:
        return None
    evaluation = material.evaluations.get(arm)
    figure = evaluation.figures.get(key) if evaluation else None
    interval = material.summary.intervals.get(arm, {}).get(key)
    if figure is None or figure.value != value:  # another evaluation than the one that was summed up
        return Cell(value=value, interval=interval, n=None)
    return Cell(value=value, interval=interval or (figure.low, figure.high), n=figure.n)


def other_figures(material: Material) -> list[tuple[str, str, str]]:
    """Everything else that was measured: name, before, after."""
    arms = [getattr(material.summary, arm) or {} for arm in ARMS]
    shown = {key for key, *_ in FIGURES}
    names = [name for name in dict.fromkeys((*arms[0], *arms[1])) if name not in shown]
    return [(name, *("–" if name not in arm else f"{arm[name]:.4g}" for arm in arms)) for name in names]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    kind: str
    counts: Mapping[str, int]

    @property
    def accounted(self) -> int:
        return sum(self.counts.get(name, 0) for name in (*OUTCOMES, "in_flight"))

    @property
    def missing(self) -> int:
        """Issued and nowhere to be found; negative when more ended than were issued."""
        return self.counts.get("issued", 0) - self.accounted

    @property
    def stale_share(self) -> float:
        ended = sum(self.counts.get(name, 0) for name in OUTCOMES)
        return self.counts.get("dropped_stale", 0) / ended if ended else 0.0

    @property
    def drops_too_many(self) -> bool:
        return self.stale_share > STALE_ALARM


def ledger_rows(material: Material) -> list[LedgerRow]:
    ledger = material.summary.ledger or {}
    return [LedgerRow(kind=kind, counts=counts) for kind, counts in ledger.items() if isinstance(counts, dict)]


def balances(material: Material) -> bool:
    """The server's own word and the arithmetic of the table must agree."""
    ledger = material.summary.ledger or {}
    return ledger.get("balanced") is not False and all(row.missing == 0 for row in ledger_rows(material))


def setting_rows(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Section -> its keys and values; what stands outside of a section comes first."""
    loose = [(key, _text(value)) for key, value in config.items() if not isinstance(value, Mapping)]
    tables = [(name, _rows(name, table)) for name, table in config.items() if isinstance(table, Mapping)]
    return [("run file", loose), *tables] if loose else tables


def _rows(section: str, table: Mapping[str, Any]) -> list[tuple[str, str]]:
    # a report is passed on, and a server's URL may hold its password
    return [(key, value) for key, value in _flat(table) if (section, key) != ("redis", "url")]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) or "(none)"
    return str(value) if value != "" else "(empty)"
