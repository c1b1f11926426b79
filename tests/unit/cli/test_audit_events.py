"""Reading the event log: every event once, in order, whatever happened to the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.audit_events import PAGE, of_the_disk, read_events
from common.records import Event
from common.streams import position


def line(generation: str, event_id: str, **fields: str) -> str:
    return json.dumps({"generation": generation, "id": event_id, **fields}) + "\n"


class Server:
    """What is left of the log on the server; ``hand_over`` is called between two pages."""

    def __init__(self, generation: str | None, *ids: str) -> None:
        self.name = generation
        self.left = [Event(id=event_id, fields={"at": "server"}) for event_id in ids]
        self.hand_over = lambda: None

    def generation(self) -> str | None:
        return self.name

    def events(self, after: str = "0-0", count: int = 1000) -> list[Event]:
        page = [event for event in self.left if position(event.id) > position(after)][:count]
        self.hand_over()
        return page


def ids(events: list[Event]) -> list[str]:
    return [event.id for event in events]


def test_disk_and_server_are_one_log(tmp_path: Path) -> None:
    (tmp_path / "e000001.jsonl").write_text(line("g", "1-0", event="issued", uids="a") + line("g", "2-0"))
    (tmp_path / "e000002.jsonl").write_text(line("g", "2-0") + line("g", "10-0"))
    events = read_events(Server("g", "10-0", "11-0"), tmp_path)
    assert ids(events) == ["1-0", "2-0", "10-0", "11-0"]
    assert events[0].fields == {"event": "issued", "uids": "a"}


def test_a_file_of_a_learner_that_was_replaced_may_go_on_after_the_next_one_began(tmp_path: Path) -> None:
    (tmp_path / "e000001.jsonl").write_text(line("g", "1-0") + line("g", "4-0"))
    (tmp_path / "e000002.jsonl").write_text(line("g", "2-0") + line("g", "3-0"))
    assert ids(read_events(Server("g"), tmp_path)) == ["1-0", "2-0", "3-0", "4-0"]


def test_a_server_that_lost_the_run_and_was_rebuilt_comes_last_whatever_its_clock_says(tmp_path: Path) -> None:
    (tmp_path / "e000001.jsonl").write_text(line("old", "900-0") + line("old", "901-0"))
    (tmp_path / "e000002.jsonl").write_text(line("new", "5-0"))
    assert ids(read_events(Server("new", "6-0"), tmp_path)) == ["900-0", "901-0", "5-0", "6-0"]
    assert ids(read_events(Server("newer", "1-0", "5-0"), tmp_path))[2:] == ["5-0", "1-0", "5-0"]
    assert ids(read_events(Server(None), tmp_path)) == ["900-0", "901-0", "5-0"]


def test_what_goes_to_disk_while_it_is_read_is_not_missed(tmp_path: Path) -> None:
    all_ids = [f"{number}-0" for number in range(1, 2 * PAGE + 2)]
    server = Server("g", *all_ids)

    def hand_over() -> None:
        moved, server.left = server.left[: PAGE + 500], server.left[PAGE + 500 :]
        with (tmp_path / "e000001.jsonl").open("a") as file:
            file.writelines(line("g", event.id) for event in moved)

    server.hand_over = hand_over
    assert ids(read_events(server, tmp_path)) == all_ids


@pytest.mark.parametrize("cut", [1, 12, 30, len(line("g", "2-0", event="issued")) - 2])
def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path, cut: int) -> None:
    """A full disk in the middle of a line; afterwards the same events are written once more."""
    torn = line("g", "2-0", event="issued")[:cut]
    (tmp_path / "e000001.jsonl").write_text(
        line("g", "1-0") + torn + line("g", "2-0", event="issued") + line("g", "3-0") + torn
    )
    assert [one.event.id for one in of_the_disk(tmp_path)] == ["1-0", "2-0", "3-0"]


def test_bytes_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "e000001.jsonl").write_bytes(b"\xff\xfe\x00\n[]\n" + line("g", "1-0").encode() + b'{"generation": 1}\n')
    assert [one.event.id for one in of_the_disk(tmp_path)] == ["1-0"]


def test_a_reason_that_looks_like_a_line_stays_a_reason(tmp_path: Path) -> None:
    reason = 'no {"generation": "g", "id": "9-0"}\n'
    (tmp_path / "e000001.jsonl").write_text(line("g", "1-0", reason=reason))
    [logged] = of_the_disk(tmp_path)
    assert logged.event.fields == {"reason": reason}


def test_a_run_without_a_log_on_disk(tmp_path: Path) -> None:
    assert ids(read_events(Server("g", "1-0"), tmp_path / "none")) == ["1-0"]
