"""The live display of `spark up`: how far the learner is, what its last steps say, what each process does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.report.history import STEP, MetricsReader, Row, busy_s, total, without_repeats
from cli.services import services
from cli.status import CHECK, IN_VAIN
from common.settings import Settings

STALLED: Final = "stalled"
"""The first word of a stalled member's state."""

POLL_S: Final = 0.25
STATES_EVERY: Final = 4
"""Polls between two looks at the processes, each of which asks the server."""
RECENT: Final = 10
"""Steps of the means, and between two plain lines."""
PACE: Final = 20
"""Steps that say how long the rest takes."""

Measure = Callable[[Sequence[Row]], float | None]


def mean_of(name: str) -> Measure:
    """Mean over the rows that have the metric."""

    def measure(rows: Sequence[Row]) -> float | None:
        values = [row[name] for row in rows if name in row]
        return sum(values) / len(values) if values else None

    return measure


def per_second(prefix: str) -> Measure:
    """Counts over the learner's time, pauses left out."""

    def measure(rows: Sequence[Row]) -> float | None:
        seconds = sum(map(busy_s, rows))
        return sum(total(row, prefix) for row in rows) / seconds if seconds else None

    return measure


def waiting_share(rows: Sequence[Row]) -> float | None:
    seconds = sum(map(busy_s, rows))
    return sum(row.get("seconds/wait_for_groups", 0.0) for row in rows) / seconds if seconds else None


LEARNING: Final[tuple[tuple[str, Measure, str], ...]] = (
    ("solve", mean_of("reward/solve"), ".2f"),
    ("pointwise", mean_of("reward/pointwise"), ".2f"),
    ("  right accepted", mean_of("judge/tpr"), ".2f"),
    ("  wrong rejected", mean_of("judge/tnr"), ".2f"),
    ("pairwise", mean_of("reward/pairwise"), ".2f"),
    ("reflection fixes", mean_of("reflect/fixed"), ".2f"),
    ("reflection keeps", mean_of("reflect/kept"), ".2f"),
)
MACHINE: Final[tuple[tuple[str, Measure, str], ...]] = (
    ("staleness", mean_of("staleness"), ".1f"),
    ("  of content", mean_of("content_staleness"), ".1f"),
    ("KL to behaviour", mean_of("kl"), ".1e"),
    ("groups/s", per_second("groups/"), ".0f"),
    ("samples/s", per_second("samples"), ".0f"),
    ("learner waits", waiting_share, ".0%"),
)
SHORT: Final = (
    ("solve", LEARNING[0]),
    ("pointwise", LEARNING[1]),
    ("tpr", LEARNING[2]),
    ("tnr", LEARNING[3]),
    ("pair", LEARNING[4]),
    ("staleness", MACHINE[0]),
)
"""The figures of a plain line and their names there."""


class Progress:
    """Follows metrics.jsonl. ``states`` tells what each member of the run is doing; it may ask the server."""

    def __init__(
        self, settings: Settings, run_path: Path, *, console: Console, states: Callable[[], Mapping[str, str]]
    ) -> None:
        self._steps = settings.learner.max_steps
        self._name = settings.run.name
        self._console = console
        self._states = states
        self._reader = MetricsReader(run_path / "metrics.jsonl")
        self._rows: list[Row] = []
        expected = [member for service in services(settings) for member in service.members()]
        self._members: Mapping[str, str] = dict.fromkeys(("server", *expected), "")
        self._printed: dict[str, str] = {}
        """Member -> where it is stalled, as printed."""
        self._next_line = RECENT

    async def watch(self) -> None:
        """Show until cancelled, and then once more what came last."""
        if self._console.is_terminal:
            with Live(self.view(), console=self._console, auto_refresh=False) as live:
                await self._follow(lambda rows: live.update(self.view(rows), refresh=True))
        else:
            self._print(starting(self._members))
            await self._follow(self.print_lines)

    async def _follow(self, show: Callable[[Sequence[Row]], None]) -> None:
        """``show`` gets the new rows whenever there are any, and none when a process changed its state."""
        try:
            for poll in itertools.count():
                if rows := self._reader.read():
                    show(rows)
                if poll % STATES_EVERY == 0 and await self._look_at_members():
                    show([])
                await asyncio.sleep(POLL_S)
        finally:
            show(self._reader.read())

    async def _look_at_members(self) -> bool:
        """Beside the loop: the server may be slow to answer, and the supervisor must not be. True: one has changed."""
        before, told = self._members, await asyncio.to_thread(self._states)
        self._members = {**before, **told}
        return self._members != before

    def view(self, new: Sequence[Row] = ()) -> RenderableType:
        """For a terminal: all of it, ``new`` rows included."""
        self._keep(new)
        if not self._rows:
            return Group(Text(starting(shortened(self._members)), overflow="fold"), *self._troubles())
        reporting = {member: state for member, state in shortened(self._members).items() if state}
        return Group(
            bar(self._name, self._rows, self._steps),
            figures(self._rows),
            Text(members_line(reporting), style="dim"),
            *self._troubles(),
        )

    def _troubles(self) -> list[Text]:
        troubles = stalled(self._members) | in_vain(self._members)
        return [Text(f"{member} {state}", style="red", overflow="fold") for member, state in troubles.items()]

    def print_lines(self, new: Sequence[Row]) -> None:
        """For a log: one line for every RECENT optimizer steps, for the last one, and for a member that stalls."""
        self._print_stalls()
        for row in new:
            self._keep([row])
            step = round(row[STEP])
            if step >= min(self._next_line, self._steps):
                self._next_line = (step // RECENT + 1) * RECENT
                self._print(plain_line(self._rows, self._steps))

    def _print_stalls(self) -> None:
        """Once for each stage that a member is stalled in, and each pause; what it waits for may be worded anew."""
        stalls = stalled(self._members) | held(self._members) | in_vain(self._members)
        places = {member: state.partition(";")[0] for member, state in stalls.items()}
        for member, place in places.items():
            if self._printed.get(member) != place:
                self._print(f"{member} {stalls[member]}")
        self._printed = places

    def _keep(self, new: Sequence[Row]) -> None:
        self._rows = without_repeats([*self._rows, *new])[-max(PACE, RECENT) :]

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a full disk behind stdout: a line for people is not worth the run
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def starting(members: Mapping[str, str]) -> str:
    """What a run without a first step waits for."""
    return f"starting: {members_line(members)}; waiting for the first optimizer step"


def stalled(members: Mapping[str, str]) -> dict[str, str]:
    """Those that get nothing done, with what they wait for."""
    return {member: state for member, state in members.items() if state.startswith(STALLED)}


def in_vain(members: Mapping[str, str]) -> dict[str, str]:
    """The learner to which nothing comes that it could train, with what to do about it."""
    return {member: f"{state}; {CHECK}" for member, state in members.items() if state.startswith(IN_VAIN)}


def shortened(members: Mapping[str, str]) -> dict[str, str]:
    """Where trouble has a line of its own, its first words."""
    words = (STALLED, IN_VAIN)
    return {m: next((word for word in words if state.startswith(word)), state) for m, state in members.items()}


def held(members: Mapping[str, str]) -> dict[str, str]:
    """The learner of a run that a user has paused or drains, with who did it: it says so first."""
    state = members.get("learner", "")
    return {"learner": state} if state.startswith(("paused by", "draining by")) else {}


def members_line(members: Mapping[str, str]) -> str:
    """Each with its state, where it reports one."""
    return ", ".join(f"{member} {state}".strip() for member, state in members.items())


def plain_line(rows: Sequence[Row], steps: int) -> str:
    """Means of the last RECENT steps in one line."""
    recent = rows[-RECENT:]
    values = [(name, measure(recent), form) for name, (_, measure, form) in SHORT]
    found = [f"{name} {cell(value, form)}" for name, value, form in values if value is not None]
    speed = cell(MACHINE[3][1](recent), ".0f")
    return "  ".join([f"step {rows[-1][STEP]:.0f}/{steps}", *found, f"{speed} groups/s"])


def bar(name: str, rows: Sequence[Row], steps: int) -> Table:
    """One line: name, bar, steps, time that is left."""
    done = min(rows[-1][STEP], steps)
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(overflow="ellipsis", no_wrap=True, max_width=16)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    line.add_column(no_wrap=True, justify="right")
    progress = ProgressBar(total=steps, completed=done)
    line.add_row(Text(name, style="bold"), progress, f"{done:.0f}/{steps} steps", left(rows, steps))
    return line


def seconds_left(rows: Sequence[Row], steps: int) -> float | None:
    """The steps to go at the pace of the last ones; a batch may be several steps. None before a pace is known."""
    paced = rows[-PACE:]
    made = paced[-1][STEP] - paced[0][STEP]
    if made <= 0:
        return None
    spent = sum(map(busy_s, paced[1:]))
    return max(0.0, steps - paced[-1][STEP]) * spent / made


def left(rows: Sequence[Row], steps: int) -> str:
    seconds = seconds_left(rows, steps)
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min left" if hours else f"{minutes}:{rest:02} left"


def figures(rows: Sequence[Row]) -> Table:
    """What the last step and the last RECENT steps say: learning on the left, the machine on the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("reward", "run"):
        table.add_column(heading, no_wrap=True)
        table.add_column("last", justify="right", no_wrap=True)
        table.add_column(f"mean of {RECENT}", justify="right", no_wrap=True)
    for index in range(max(len(LEARNING), len(MACHINE))):
        table.add_row(*_figure(LEARNING, index, rows), *_figure(MACHINE, index, rows))
    return table


def _figure(measures: Sequence[tuple[str, Measure, str]], index: int, rows: Sequence[Row]) -> tuple[str, str, str]:
    if index >= len(measures):
        return "", "", ""
    label, measure, form = measures[index]
    return label, cell(measure(rows[-1:]), form), cell(measure(rows[-RECENT:]), form)


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
