"""The tables of the report as plain rows (pure): before and after, and the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from cli.report.history import History
from cli.report.material import Interval, Material
from common.messages import OUTCOMES, Kind

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


def endings_so_far(history: History) -> list[tuple[str, dict[str, float]]]:
    """Kind of task -> groups by ending, as the learner has counted them; for a run that has no ledger yet."""
    return [
        (kind, {name: sum(history.total(f"{name}/{kind}")) for name in OUTCOMES if name != "dead"})
        for kind in get_args(Kind)
        if any(any(history.total(f"{name}/{kind}")) for name in OUTCOMES)
    ]


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

    def share(self, name: str) -> float:
        """Of the tasks that were issued."""
        return self.counts.get(name, 0) / max(self.counts.get("issued", 0), 1)


def ledger_rows(material: Material) -> list[LedgerRow]:
    ledger = material.summary.ledger or {}
    return [LedgerRow(kind=kind, counts=counts) for kind, counts in ledger.items() if isinstance(counts, dict)]


def balances(material: Material) -> bool:
    """The server's own word and the arithmetic of the table must agree."""
    ledger = material.summary.ledger or {}
    return ledger.get("balanced") is not False and all(row.missing == 0 for row in ledger_rows(material))
