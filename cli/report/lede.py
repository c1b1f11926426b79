"""The report in a few sentences: what changed, and what to look at first. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from cli.report.history import paused_s
from cli.report.material import Material
from cli.report.tables import FigureRow, balances, figure_rows, ledger_rows
from cli.report.words import count, listed, number, percent, training_time

TOLD = ("policy", "pointwise", "pairwise", "fix", "tts")
"""Figures that the first sentences speak of."""
AS_SUBJECT = {"pointwise": "pointwise judging", "pairwise": "pairwise judging", "fix": "repairing wrong answers"}


def lede(material: Material) -> list[str]:
    return [*_changes(material), *_progress(material), *_alarms(material), *_accounts(material)]


def _changes(material: Material) -> Iterator[str]:
    rows = [row for row in figure_rows(material) if row.key in TOLD and row.change is not None]
    for verdict, verb in (("better", "Better after training"), ("worse", "Worse after training")):
        if named := [row for row in rows if row.verdict == verdict]:
            yield f"{verb}: {listed([_told(row) for row in named])}."
    if unclear := [row for row in rows if row.verdict == "unclear"]:
        yield f"Without a clear change: {listed([_told(row) for row in unclear])}."


def _told(row: FigureRow) -> str:
    name = AS_SUBJECT.get(row.key, row.name.lower())
    before, after = (percent(row.cells[arm].value) for arm in ("before", "after"))
    return f"{name} ({before}\u00a0→\u00a0{after})"


def _progress(material: Material) -> Iterator[str]:
    history, summary = material.history, material.summary
    if not history.rows:
        return
    took = f" in {training_time(summary.wall_s, paused_s(history.rows))}" if summary.wall_s else ""
    ended = {True: "The run finished", False: "The run was stopped", None: "So far"}[summary.finished]
    steps, samples = number(history.steps[-1]), number(sum(history.total("samples")))
    yield f"{ended}: {steps} optimizer steps{took}, {samples} samples."


def _alarms(material: Material) -> Iterator[str]:
    alarms = [value for value in material.history.column("judge/alarms") if value == value]
    if raised := sum(value > 0 for value in alarms):
        yield f"An alarm about the judge stood at {raised} of {count(len(alarms), 'step')}."


def _accounts(material: Material) -> Iterator[str]:
    rows = ledger_rows(material)
    if not rows:
        return
    issued, dropped = (sum(row.counts.get(name, 0) for row in rows) for name in ("issued", "dropped_stale"))
    if not balances(material):
        yield "The ledger does not balance: tasks were lost or counted twice."
    else:
        yield f"All {number(issued)} tasks are accounted for, {number(dropped)} of them dropped as stale."
