"""The panels of `spark top`: each says one thing of a snapshot in rows of one line. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from cli.causes.finding import span
from cli.causes.members import expected
from cli.dashboard.rates import Pace, Rates, staleness_shares
from cli.plain import plain
from cli.progress import waiting_share
from cli.report.history import Row
from cli.snapshot import Snapshot
from cli.status import is_stalled, version_of
from common.messages import OUTCOMES
from common.observer import Queue
from common.records import Beat

BAR: Final = 24
"""Characters of the longest bar."""
EIGHTHS: Final = "▁▂▃▄▅▆▇█"
HELD: Final = ("paused by ", "draining by ")
"""How the state begins of a member that a user holds back."""
NAME: Final = 8
"""Columns that a name has in any case."""
SHORT_NAMES: Final = {
    "balanced_accuracy": "accuracy",
    "pairwise_accuracy": "pairwise",
    "swap_consistency": "swap",
}
PANEL: Final = ("balanced_accuracy", "tpr", "tnr", "ece", "auroc", "pairwise_accuracy", "swap_consistency")
"""Figures of the judge in the order in which they are shown, as far as there are any."""


def grid(*columns: str) -> Table:
    """A table without lines. A heading that starts with ``<`` is of a column of text, each cell a ``one_line``."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for heading in columns:
        if heading.startswith("<"):  # where there is little room, texts give way: rich narrows what it may wrap
            least = NAME if heading == "<member" else None
            table.add_column(heading.removeprefix("<"), overflow="ellipsis", min_width=least)
        else:
            table.add_column(heading, no_wrap=True, overflow="ellipsis", justify="right", min_width=len(heading))
    return table


def one_line(text: str) -> Text:
    """Cut where it does not fit."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def age(seconds: float | None) -> str:
    return "-" if seconds is None else span(seconds)


# -- throughput and backlog -----------------------------------------------------------------------------------


def throughput(rates: Rates) -> Table:
    table = grid("<stage", "groups/s", "tokens/s")
    for name, pace in (
        ("issue", rates.issue),
        ("generate", rates.generate),
        ("recycle", rates.recycle),
        ("filtered", rates.filtered),
        ("train", rates.train),
    ):
        table.add_row(one_line(name), number(pace.groups_s), number(pace.tokens_s, ".0f"))
    table.add_row("steps/s", number(rates.steps_s, ".2f"), "")
    return table


def backlog(s: Snapshot) -> Table:
    """One row for every consumer group: entries it has not read, entries it holds, and the age of its oldest."""
    table = grid("<stream -> group", "waits", "held", "oldest")
    for queue in s.queues:
        name = f"{queue.stream} -> {queue.group}"
        table.add_row(one_line(name), str(queue.undelivered), str(queue.pending), age(oldest_s(queue)))
    return table


def oldest_s(queue: Queue) -> float | None:
    """Age of the oldest entry that is not acknowledged."""
    ages = [seconds for seconds in (queue.oldest_pending_s, queue.oldest_undelivered_s) if seconds is not None]
    return max(ages, default=None)


# -- members ------------------------------------------------------------------------------------------------


def members(s: Snapshot, rates: Rates, most: int) -> Table:
    """``most``: rows for actors. Those in trouble come first; of the others a last row tells how many there are."""
    table = grid("<member", "<does", "version", "waits", "leases", "groups/s", "tokens/s")
    for name in ("learner", "recycler"):
        if name in s.members or name in expected(s):
            _member(table, s, name, Pace(waits=_waits_of(s, name)))
    actors = sorted(_actors(s), key=lambda name: (not in_trouble(s.members.get(name)), name))
    shown = actors if len(actors) <= most else actors[: max(1, most - 1)]
    for name in shown:
        _member(table, s, name, rates.actors.get(name, Pace()))
    if rest := actors[len(shown) :]:
        paces = [rates.actors.get(name, Pace()) for name in rest]
        groups, tokens = (sum(getattr(p, field) or 0.0 for p in paces) for field in ("groups_s", "tokens_s"))
        held = sum(lease.owner in rest for lease in s.leases)
        row = f"{len(rest)} more", "", "", "", str(held), number(groups), number(tokens, ".0f")
        table.add_row(*row, style="dim")
    return table


def _actors(s: Snapshot) -> list[str]:
    """Those that live, and those of this run that should."""
    named = {name for name, role in expected(s).items() if role == "actor"}
    return [name for name in s.members if name in s.living("actor") or name in named]


def in_trouble(beat: Beat | None) -> bool:
    return beat is None or is_stalled(beat) or bool(beat.get("trouble"))


def _member(table: Table, s: Snapshot, name: str, pace: Pace) -> None:
    beat = s.members.get(name)
    held = sum(lease.owner == name for lease in s.leases)
    table.add_row(
        one_line(plain(name, 24)),
        one_line(plain(doing(beat), 60) if name in s.members else "has not come up yet"),
        version_of(beat) if beat and "policy_version" in beat else "-",
        share(pace.waits),
        str(held) if held or (beat and beat.get("role") == "actor") else "",
        number(pace.groups_s) if pace.groups_s is not None else "",
        number(pace.tokens_s, ".0f") if pace.tokens_s is not None else "",
        style="bold red" if name in s.members and in_trouble(beat) else None,
    )


def doing(beat: Beat | None) -> str:
    """What a member does, in a few words; the findings say more."""
    if beat is None:
        return "NOT RUNNING"
    if is_stalled(beat):
        return f"STALLED {span(float(beat['stalled_s']))}: {beat['stage']}"
    if beat.get("trouble"):
        return f"WEIGHTS DO NOT LOAD: {beat['trouble']}"
    state = str(beat.get("state", "alive"))
    return state.partition(" by ")[0] if state.startswith(HELD) else state  # a finding says by whom


def _waits_of(s: Snapshot, name: str) -> float | None:
    """The learner's share of the last steps; the recycler tells none."""
    if name != "learner":
        return None
    beat = s.members.get("learner") or {}
    return float(beat["waiting_share"]) if "waiting_share" in beat else waiting_share(s.rows)


# -- staleness, judge, endings --------------------------------------------------------------------------------


def staleness(rows: Sequence[Row], most: int) -> list[Text]:
    """Histogram of the tokens of the last batches over versions; lags from ``most`` rows on are one."""
    shares = staleness_shares(rows)
    if not shares:
        return [Text("no tokens trained yet", style="dim")]
    lags = sorted(shares)
    first, rest = lags[: most - 1], lags[most - 1 :]
    bars = [(str(lag), shares[lag]) for lag in first]
    if rest:
        more = "" if len(rest) == 1 else "+"
        bars.append((f"{rest[0]}{more}", sum(shares[lag] for lag in rest)))
    longest = max(value for _, value in bars)
    return [Text(f"{lag:>3} {'█' * max(1, round(BAR * value / longest)):<{BAR}} {value:4.0%}") for lag, value in bars]


def staleness_line(rows: Sequence[Row]) -> str:
    """The same in one line: a bar of eighths for each lag."""
    shares = staleness_shares(rows)
    bars = [f"{lag} {EIGHTHS[round(7 * value)]} {value:.0%}" for lag, value in list(shares.items())[:7]]
    return "   ".join(bars) or "no tokens trained yet"


def judge_figures(s: Snapshot) -> dict[str, float]:
    """The newest panel of the learner; else what the last batches tell."""
    beat = s.members.get("learner") or {}
    panel: Mapping[str, Any] = beat.get("judge") or _from_rows(s.rows)
    known = {
        name.removeprefix("judge/"): float(value) for name, value in panel.items() if isinstance(value, int | float)
    }
    first = [name for name in PANEL if name in known]
    return {plain(SHORT_NAMES.get(name, name), 24): known[name] for name in (*first, *sorted(set(known) - set(first)))}


def _from_rows(rows: Sequence[Row]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("judge/") and name.count("/") == 1:
                values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def judge_line(s: Snapshot, width: int) -> str:
    if s.settings.learner.judge_share == 0:
        return "switched off"
    figures = [f"{name} {value:.2f}" for name, value in judge_figures(s).items()]
    return fitting(figures, "  ", width) or "no verdicts yet"


def fitting(parts: Sequence[str], between: str, width: int) -> str:
    """As many whole parts as fit into a line, the most important first."""
    line = ""
    for part in parts:
        longer = f"{line}{between}{part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


def judge_rows(s: Snapshot, most: int) -> list[Text]:
    if s.settings.learner.judge_share == 0:
        return [Text("switched off", style="dim")]
    rows = [Text(f"{name:<24} {value:6.2f}") for name, value in judge_figures(s).items()][:most]
    return rows or [Text("no verdicts yet", style="dim")]


def endings(s: Snapshot, width: int) -> str:
    """Where the issued tasks are, both kinds together; in round numbers where they would not fit."""
    exact = _endings(s, str)
    return exact if len(exact) <= width else _endings(s, _round)


def _endings(s: Snapshot, form: Callable[[int], str]) -> str:
    kinds = s.ledger.kinds.values()
    words = {"dropped_stale": "stale", "in_flight": "in flight"}
    names = (*OUTCOMES, "in_flight")
    ends = [f"{form(sum(kind[name] for kind in kinds))} {words.get(name, name)}" for name in names]
    issued = form(sum(kind["issued"] for kind in kinds))
    return f"{issued} {'=' if s.ledger.balanced else 'ARE NOT'} {', '.join(ends)}"


def _round(count: int) -> str:
    """Three digits and a unit: ``12.3k``."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
