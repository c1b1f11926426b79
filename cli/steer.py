"""`spark pause|resume|drain|set`: tell a run what to do while it goes on. docs/steering.md has the protocol."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Final

from cli.plain import plain
from cli.rundir import RunDirectory, open_run
from cli.status import streams_of
from common.codec import decode
from common.errors import InvalidMessage, ServerError, SettingsError
from common.live import LIVE, decide, steered, value_of
from common.records import lives
from common.settings import Settings
from common.settings_sources import load_settings, overridden_keys
from common.steering import Action, Answer, Command, Steering, Value, fold, moment, unheard
from common.streams import Streams
from common.templates import load_templates
from learner.journal import Journal
from recycler.reservoir import Reservoir

POLL_S: Final = 0.1
OBEYED: Final[dict[Action, str]] = {
    "pause": "paused after step {}: no tasks are issued, no step is taken; `spark resume RUN` goes on",
    "resume": "goes on after step {}",
    "drain": "draining after step {}: no tasks are issued; the run ends when all in flight is trained",
    "set": "set after step {}, and journaled",
}


def tell(path: Path, action: Action, *, wait_s: float) -> None:
    """Give one of the commands without values."""
    _give(open_run(path), action, {}, wait_s)


def set_values(path: Path, assignments: Sequence[str], *, wait_s: float) -> None:
    """``section.key=value`` of each; without any the list of what can be set. Raises SettingsError."""
    run = open_run(path)
    if not assignments:
        _print_live(run)
        return
    _give(run, "set", parsed(run.config, assignments), wait_s)


def parsed(config: Path, assignments: Sequence[str]) -> dict[str, Value]:
    """Setting -> value, typed and checked as in a run file. Raises SettingsError with the settings' own sentence."""
    for assignment in assignments:
        if "=" not in assignment:
            raise SettingsError(f"{assignment!r}: write section.key=value, for example learner.judge_share=0.3")
    wanted = load_settings(config, assignments)
    return {key: value_of(wanted, key) for key in overridden_keys(assignments)}


def _give(run: RunDirectory, action: Action, values: dict[str, Value], wait_s: float) -> None:
    with streams_of(run) as streams:
        streams.conservation()  # refuses a server without the run
        if values:
            check(run.settings, standing(run, streams), values)
        command = Command(nonce=secrets.token_hex(8), action=action, by=who(), at=time.time(), values=values)
        streams.steer(command)
        try:
            answer = _await(lambda: streams.steering().answer(command.nonce), wait_s if _listens(streams) else 0.0)
            waits = "" if answer else _waits(streams)
        except (InvalidMessage, ServerError) as error:  # no failure: the command is there, and will be obeyed
            answer, waits = None, f"sent; what the learner makes of it is not known: {error}"
        if answer is None:
            print(waits)
            return
    if answer.refused:
        raise SettingsError(f"the learner refuses: {answer.refused}")
    print(OBEYED[action].format(answer.policy_version))


def check(settings: Settings, steering: Steering, values: dict[str, Value]) -> None:
    """Raises SettingsError, before anything is sent, for what the learner would refuse or the recycler could not do."""
    wanted = steered(settings, {**steering.values, **values})
    if any(key.startswith("recycler.") for key in values):
        templates = load_templates(settings.templates.path)
        Reservoir(wanted.recycler, wanted.sampling, templates, run=settings.run.name, seed=settings.run.seed)


def standing(run: RunDirectory, streams: Streams) -> Steering:
    """What the run obeys, or will: its journal on disk, and then the commands that no learner has heard yet."""
    changes = Journal(run.path / "checkpoints").read()
    heard, steering = {change.nonce for change in changes}, fold(changes)
    for payload in unheard(streams.control, lambda _id, payload: _is_heard(payload, heard)):
        command = decode(Command, payload)
        steering = steering.after(decide(command, steering, run.settings, policy_version=-1, epoch=0))
    return steering


def _is_heard(payload: bytes, heard: Set[str]) -> bool:
    """What cannot be read counts as heard: nobody obeys it."""
    try:
        return decode(Command, payload).nonce in heard
    except InvalidMessage:
        return True


def who() -> str:
    """The user and the host that a command comes from."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _listens(streams: Streams) -> bool:
    """A learner lives, as far as the server knows."""
    return lives(streams.members().get("learner"))


def _await(answer: Callable[[], Answer | None], wait_s: float) -> Answer | None:
    """Until the learner has answered; unblocked by its next step boundary, or by ``wait_s``."""
    give_up_at = time.monotonic() + wait_s
    while (found := answer()) is None and time.monotonic() < give_up_at:
        time.sleep(POLL_S)
    return found


def _waits(streams: Streams) -> str:
    if not _listens(streams):
        return "sent; no learner of this run is running: the next one obeys when it starts"
    return "sent, and not answered yet: the learner obeys after the step at hand, or when it is started again"


# -- what is printed --------------------------------------------------------------------------------------------


def in_words(run: RunDirectory, steering: Steering) -> list[str]:
    """What holds besides the run file, one line each; nothing for a run that nobody steers."""
    lines = [f"{plain(steering.held)}; `spark resume {run.path}` goes on"] if steering.held else []
    return lines + values_in_words(steering)


def values_in_words(steering: Steering) -> list[str]:
    """Settings that hold instead of those of the run file, one line each."""
    return [
        f"{key} = {live.value!r}, set by {plain(live.by)} at step {live.policy_version}, {moment(live.at)} "
        f"(run file: {live.of_file!r})"
        for key, live in sorted(steering.live.items())
    ]


def _print_live(run: RunDirectory) -> None:
    from rich.console import Console
    from rich.table import Table

    with streams_of(run) as streams:
        streams.conservation()
        steering = standing(run, streams)
    table = Table(title=f"Settings of run {run.settings.run.name} that can be set while it goes on")
    for column in ("setting", "now", "run file", "a new value holds"):
        table.add_column(column, no_wrap=column != "a new value holds")
    for key, holds in LIVE.items():
        of_file = value_of(run.settings, key)
        table.add_row(key, str(steering.values.get(key, of_file)), str(of_file), holds)
    console = Console(highlight=False)
    console.print(table)
    for line in in_words(run, steering):
        console.print(line, markup=False, soft_wrap=True)
    console.print("all others need a restart: stop the run, change the run file, `spark up` again", markup=False)
