"""`spark dead`: entries that nobody could work on; look at them, put them back, or forget them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cli.dead_letters import Summary, cannot_retry, dies_again, lines, summary
from cli.plain import plain
from cli.rundir import RunDirectory, open_run
from cli.status import streams_of
from common.errors import SettingsError
from common.records import DeadLetter
from common.streams import Streams, position

PAGE: Final = 20
"""Letters read at once: each may be as large as a message."""
REASON: Final = 300
"""Characters of a reason in the list; ``show`` has it whole."""


def list_letters(path: Path, *, most: int, as_json: bool) -> None:
    """Print the newest ``most`` letters, the newest last."""
    run = open_run(path)
    with streams_of(run) as streams:
        summaries = [summary(letter) for letter in letters(streams)]
    shown = summaries[max(0, len(summaries) - most) :]
    if as_json:
        print(json.dumps([row.as_dict() for row in shown]))
        return
    _print_list(run, shown)
    if len(shown) < len(summaries):
        print(f"{len(summaries) - len(shown)} older ones; -n {len(summaries)} shows them")


def show_letter(path: Path, letter_id: str, *, as_json: bool) -> None:
    """Print all that is known of one letter. Raises SettingsError when there is none of that id."""
    run = open_run(path)
    with streams_of(run) as streams:
        [letter] = _chosen(streams, run, [letter_id])
    if as_json:
        print(json.dumps({**summary(letter).as_dict(), "payload": dict(lines(letter))}))
        return
    for name, value in (*_fields(letter), *lines(letter)):
        print(f"{name + ':':14}{value}")
    for remark in filter(None, (cannot_retry(letter), dies_again(letter))):
        print(remark)


def retry_letters(path: Path, ids: Sequence[str], *, every: bool) -> None:
    """Put letters back on their streams. Raises SettingsError for an unknown id, before anything is changed.

    Of letters asked for by id, one that cannot be retried is an error too; of all of them it is passed over and named.
    """
    run = open_run(path)
    with streams_of(run) as streams:
        retried = 0
        for letter_id in _asked_for(streams, run, ids, every=every, to_retry=True):
            retried += _retry(streams, letter_id)
    print(f"retried: {retried}")


def drop_letters(path: Path, ids: Sequence[str], *, every: bool) -> None:
    """Forget letters; their uids stay dead. Raises SettingsError for an unknown id, before anything is changed."""
    run = open_run(path)
    with streams_of(run) as streams:
        dropped = streams.drop(_asked_for(streams, run, ids, every=every))
    print(f"dropped: {dropped}")


def _retry(streams: Streams, letter_id: str) -> bool:
    letter = letter_of(streams, letter_id)
    if letter is not None and (why := cannot_retry(letter)) is not None:
        print(f"{letter_id}: {why}")
        return False
    if letter is None or not streams.revive(letter):
        print(f"{letter_id}: is gone; it was retried or dropped meanwhile")
        return False
    if (warning := dies_again(letter)) is not None:
        print(f"{letter_id}: {warning}")
    return True


def letters(streams: Streams) -> Iterator[DeadLetter]:
    """All dead letters, oldest first, a few at a time."""
    after = "-"
    while page := streams.dead_letters(after, PAGE):
        yield from page
        after = f"({page[-1].id}"


def letter_of(streams: Streams, letter_id: str) -> DeadLetter | None:
    page = streams.dead_letters(letter_id, 1)
    return page[0] if page and page[0].id == letter_id else None


def _asked_for(
    streams: Streams, run: RunDirectory, ids: Sequence[str], *, every: bool, to_retry: bool = False
) -> list[str]:
    if every == bool(ids):
        raise SettingsError("name the dead letters by their ids, or say --all; `spark dead list RUN` shows the ids")
    if every:
        return [letter.id for letter in letters(streams)]
    for letter in _chosen(streams, run, ids):
        if to_retry and (why := cannot_retry(letter)) is not None:
            raise SettingsError(f"letter {letter.id} {why}")
    return list(dict.fromkeys(ids))


def _chosen(streams: Streams, run: RunDirectory, ids: Sequence[str]) -> list[DeadLetter]:
    found = []
    for letter_id in dict.fromkeys(ids):
        letter = letter_of(streams, letter_id) if _is_id(letter_id) else None
        if letter is None:
            raise SettingsError(
                f"run {run.settings.run.name} has no dead letter {plain(letter_id, 40)}; "
                f"`spark dead list {run.path}` shows those it has"
            )
        found.append(letter)
    return found


def _is_id(text: str) -> bool:
    try:
        parts = position(text)
    except ValueError:
        return False
    return text == "{}-{}".format(*parts) and max(parts) < 2**64


def _fields(letter: DeadLetter) -> list[tuple[str, str]]:
    names = ("id", "uid", "kind", "stream", "group", "deliveries", "reason")
    return [(name, plain(str(getattr(letter, name))) or "-") for name in names]


def _print_list(run: RunDirectory, rows: Sequence[Summary]) -> None:
    now_ms = time.time() * 1000
    print(f"dead letters of run {run.settings.run.name}: {len(rows)}")
    for row in rows:
        age = _age(now_ms - position(row.id)[0])
        what = f"{row.kind or 'copy'} {row.objective or 'unreadable'}"
        print(f"{row.id}  {age:>6}  {what}  uid {plain(row.uid)}  deliveries {row.deliveries}")
        print(f"    {plain(row.reason, REASON)}")


def _age(milliseconds: float) -> str:
    """Of this machine's clock against the server's: for people only."""
    seconds = max(0.0, milliseconds / 1000)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
