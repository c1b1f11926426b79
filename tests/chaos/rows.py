"""The rows of the fault table: one check each, with the criterion that it must meet."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.rig import Rig
from chaos.truth import Truth, truth_of

SYNCHRONOUS: Final = ("staleness.max_staleness=0", "learner.judge_share=0")
"""Settings under which a run ends with the same weights, bit for bit, whatever happened to it."""


class CannotRun(Exception):
    """What this machine lacks for a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A row that passed: how often the fault was injected, in how many items, and what is worth saying."""

    times: int
    note: str = ""
    items: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``number`` is the row of the fault table; ``passes`` its criterion in words."""

    number: int
    fault: str
    passes: str
    check: Callable[[Path], Done]
    in_ci: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    row: Row
    verdict: str
    """``passed``, ``FAILED`` or ``cannot run``."""
    times: int
    items: int
    note: str
    seconds: float


ROWS: Final[list[Row]] = []
Check = Callable[[Path], Done]


def row(number: int, fault: str, passes: str, *, ci: bool = False) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        ROWS.append(Row(number=number, fault=fault, passes=passes, check=check, in_ci=ci))
        return check

    return register


def run_row(one: Row, folder: Path) -> Result:
    """The result of a row; a failure is one, with its reason."""
    started = time.monotonic()
    try:
        done = one.check(folder)
        verdict, times, items, note = "passed", done.times, done.items, done.note
    except CannotRun as reason:
        verdict, times, items, note = "cannot run", 0, 0, str(reason)
    except Exception as error:  # noqa: BLE001 - the table has to be complete; the row counts as failed
        traceback.print_exc()
        verdict, times, items, note = "FAILED", 0, 0, f"{type(error).__name__}: {error}"
    return Result(row=one, verdict=verdict, times=times, items=items, note=note, seconds=time.monotonic() - started)


def check(condition: object, otherwise: str) -> None:
    """Raises AssertionError, also when Python is told to leave out ``assert``."""
    if not condition:
        raise AssertionError(otherwise)


def audited(rig: Rig) -> Truth:
    """The truth about a run that has stopped. Raises AssertionError unless it is clean and nobody crashed."""
    truth = truth_of(rig.streams, rig.settings, rig.checkpoints)
    check(truth.clean, str(truth))
    check(not rig.crashes, f"crashes: {rig.crashes}")
    return truth


def calm_chain(folder: Path, *settings: str) -> str:
    """Weights of the same run when nothing happens to it."""
    with Rig(folder, *settings, actors=1, roles=("learner", "actor")) as rig:
        rig.start()
        rig.to_the_end()
        return audited(rig).chain


def stop_and_audit(rig: Rig) -> Truth:
    rig.stop()
    return audited(rig)


def lines_with(path: Path, event: str) -> Sequence[str]:
    """Log lines of an event."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines() if f'"event": "{event}"' in line]
