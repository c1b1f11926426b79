"""One frame of `spark top`: the panels, fitted to the terminal. What is grave comes first and is never cut off. Pure.

Two layouts: up to ``WIDE`` columns everything is stacked, in 24 lines if need be; above, two columns side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.causes.finding import Finding, size, span
from cli.causes.places import free_bytes
from cli.dashboard import panels
from cli.dashboard.rates import Rates
from cli.plain import plain
from cli.progress import left
from cli.snapshot import Snapshot

WIDE: Final = 120
TALL: Final = 36
"""Lines from which on nothing has to be left out."""
LEAST_ACTORS: Final = 2
LABEL: Final = 9
"""Columns of the name before a line."""
FIXED: Final = 15
"""Lines of a small screen besides findings and actors: 2 of the head, 7 of throughput and backlog, 3 of members
without actors, and one each of staleness, judge and endings."""
STYLES: Final = {"problem": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is known when a frame is drawn."""

    run: str
    now: float
    """Unix seconds."""
    snapshot: Snapshot | None
    findings: Sequence[Finding]
    rates: Rates
    trouble: str = ""
    """Why the server could not be looked at; empty when all is well."""
    since_s: float = 0.0
    """For how long."""


def frame(view: View, width: int, height: int) -> RenderableType:
    """At most ``height`` lines, if there are at least 24, of at most ``width`` columns."""
    lines = _trouble(view)
    if view.snapshot is None:
        return _wrapped([*_title(view), *(lines or [Text("looking at the server ...", style="dim")])], width, height)
    seen = view.snapshot
    head: list[RenderableType] = [
        _head(view, seen, width),
        Text(_places(seen, width), style="dim"),
    ]
    if width >= WIDE and height >= TALL:
        return Group(
            *head, *_said(view, lines, width, height // 3, advice=True), Text(), _wide(view, seen, width, height)
        )
    room = height - 1 - FIXED - LEAST_ACTORS
    said = _said(view, lines, width, max(2, room), advice=height >= TALL)
    actors = max(LEAST_ACTORS, height - 1 - FIXED - len(said))
    return Group(
        *head, *said, _two(panels.throughput(view.rates), panels.backlog(seen)), *_stack(view, seen, width, actors)
    )


# -- head ---------------------------------------------------------------------------------------------------


def _title(view: View) -> list[Text]:
    return [Text(f"spark top  {plain(view.run, 40)}  {clock(view.now)}   q leaves", style="bold")]


def _head(view: View, seen: Snapshot, width: int) -> Table:
    """One line: name, bar, version of steps, time left, clock."""
    steps = seen.settings.learner.max_steps
    done = min(seen.policy_version, steps)
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis", max_width=20)
    line.add_column(ratio=1)
    for _ in range(3):
        line.add_column(no_wrap=True, justify="right")
    remaining = left(seen.rows, steps) if seen.rows else ""
    bar = ProgressBar(total=steps, completed=done)
    line.add_row(
        Text(plain(view.run, 20), style="bold"),
        bar,
        f"version {done}/{steps}",
        remaining,
        f"{clock(view.now)}  q leaves",
    )
    return line


def _places(s: Snapshot, width: int) -> str:
    server, free, saved = s.server, free_bytes(s), s.folder.saved
    memory = f"{size(server.used_bytes)} of {size(server.most_bytes)}" if server.most_bytes else size(server.used_bytes)
    said = [f"server {memory}"]
    said += [f"disk {size(free)} free"] if free is not None else []
    said += [f"checkpoint v{saved.policy_version} {span(saved.age_s)} ago"] if saved else ["no checkpoint"]
    said += [f"server up {span(server.up_s)}"]
    said += [f"weights v{s.weights.version} {span(s.weights.age_s)} ago"] if s.weights else ["no weights"]
    return panels.fitting(said, " | ", width)


def clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


# -- what is wrong --------------------------------------------------------------------------------------------


def _trouble(view: View) -> list[Text]:
    if not view.trouble:
        return []
    known = f" What follows was known at {clock(view.snapshot.at)}." if view.snapshot else ""
    text = f"NO SERVER for {span(view.since_s)}, trying again: {plain(view.trouble, 300)}.{known}"
    return [Text(text.replace("..", "."), style="bold red")]


def _said(view: View, trouble: Sequence[Text], width: int, most: int, *, advice: bool) -> list[Text]:
    """Findings in at most ``most`` lines: the gravest in full, the others as far as there is room."""
    texts = [*trouble, *(text for finding in view.findings for text in _finding(finding, advice=advice))]
    if not texts:
        return [Text("healthy: nothing is wrong", style="green")]
    first, *others = [_lines(text, width) for text in texts]
    kept = _cut(first, most - bool(others))
    for index, block in enumerate(others):
        room, after = most - len(kept), len(others) - index - 1
        if room == 1 and after:
            return [*kept, Text("there is more: spark status RUN", style="dim")]
        kept += _cut(block, max(1, room - after))  # a line for each that follows
    return kept


def _finding(finding: Finding, *, advice: bool) -> list[Text]:
    cause = Text(f"{finding.severity.upper()}: {finding.cause}", style=STYLES[finding.severity])
    return [cause, Text(f"  do: {finding.do}")] if advice else [cause]


def _lines(text: Text, width: int) -> list[Text]:
    return list(text.wrap(Console(width=width), width))


def _cut(lines: list[Text], most: int) -> list[Text]:
    if len(lines) <= most:
        return lines
    last = lines[most - 1].copy()
    last.right_crop(max(0, len(last) - len(lines[0]) + 4))
    return [*lines[: most - 1], last.append(" ...")]


def _wrapped(texts: Sequence[Text], width: int, height: int) -> RenderableType:
    return Group(*[line for text in texts for line in _lines(text, width)][: height - 1])


# -- layouts --------------------------------------------------------------------------------------------------


def _two(left_side: RenderableType, right_side: RenderableType) -> Table:
    both = Table.grid(padding=(0, 3, 0, 0))
    both.add_row(left_side, right_side)
    return both


def _stack(view: View, seen: Snapshot, width: int, actors: int) -> list[RenderableType]:
    """Everything below one another; what has rows on a wide screen has one line here."""
    named = {
        "stale by": panels.staleness_line(seen.rows),
        "judge": panels.judge_line(seen, width - LABEL),
        "issued": panels.endings(seen, width - LABEL),
    }
    lines = [
        Text.assemble((f"{name:<{LABEL}}", "dim"), text, no_wrap=True, overflow="ellipsis")
        for name, text in named.items()
    ]
    return [panels.members(seen, view.rates, actors), *lines]


def _wide(view: View, seen: Snapshot, width: int, height: int) -> Table:
    """Flow on the left; members, judge and endings on the right."""
    room = max(LEAST_ACTORS, height // 2 - 8)
    left_side = Group(
        panels.throughput(view.rates),
        Text(),
        panels.backlog(seen),
        Text("\nversions stale: share of tokens", style="dim"),
        *panels.staleness(seen.rows, 8),
    )
    right_side = Group(
        panels.members(seen, view.rates, room),
        Text("\njudge", style="dim"),
        *panels.judge_rows(seen, 12),
        Text("\nissued", style="dim"),
        Text(panels.endings(seen, width // 2), overflow="fold"),
    )
    both = Table.grid(padding=(0, 4, 0, 0))
    both.add_column(min_width=width * 2 // 5)
    both.add_column()
    both.add_row(left_side, right_side)
    return both
