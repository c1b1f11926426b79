"""Which samples are shown, what their cards say, and that foreign text on them stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_groups import archived, write_archive

from cli.report import archive as report_archive
from cli.report import write_report
from cli.report.archive import Related, newest, related
from cli.report.cards import MARKER, MOST_TEXT, card, moment
from cli.report.samples import Pick, choose
from cli.report.words import clipped, visible

HOSTILE = (
    "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"
    '" onmouseover="alert(3)" {{ 7 * 7 }} {% raw %} &lt; \x1b[2J\x07\x00 '
    "\u202eesrever\u2066 \ud83d a\u0301\u0301\u0301\u0301\u0301"
)
HOSTILE_TOML = '"<script>alert(1)</script>\\u202E"'
NOTHING = Related(sources={}, judged={})


def test_best_and_worst_went_the_other_way_than_their_group() -> None:
    rare_right = archived("rare-right", (1.0, 0.0, 0.0, 0.0))
    rare_wrong = archived("rare-wrong", (1.0, 1.0, 1.0, 0.0))
    halves = archived("halves", (1.0, 0.0))
    chosen = choose([halves, rare_right, rare_wrong])
    best, worst = chosen.shelves
    assert [(pick.record.uid, pick.sample) for _, pick in best.picks] == [("rare-right", 0), ("halves", 0)]
    assert [(pick.record.uid, pick.sample) for _, pick in worst.picks] == [("rare-wrong", 3), ("halves", 1)]


def test_of_equals_the_latest_is_shown_whatever_the_order() -> None:
    records = [archived(f"u{version}", version=version) for version in (4, 9, 6)]
    for order in (records, records[::-1]):
        best = choose(order).shelves[0]
        assert [pick.record.uid for _, pick in best.picks] == ["u9", "u6"]


def test_judged_wrong_names_both_ways_and_counts_filtered_groups() -> None:
    accepted = archived("accepted", (0.0, 0.0), objective="pointwise", positive=False, outcome="filtered")
    unsure = archived("unsure", (0.0, 1.0), objective="pointwise", positive=False, version=9)
    rejected = archived("rejected", (0.0, 1.0), objective="pointwise", positive=True)
    paired = archived("paired", (0.0, 1.0), objective="pairwise", positive=True)
    (shelf,) = choose([unsure, accepted, rejected, paired]).shelves
    assert [(title, pick.record.uid) for title, pick in shelf.picks] == [
        ("Wrong answer accepted", "accepted"),
        ("Right answer rejected", "rejected"),
        ("Wrong one of two preferred", "paired"),
    ]


def test_what_could_not_be_read_or_was_not_scored_is_no_misjudgement_and_no_failure() -> None:
    unread = archived("a", (0.0, 0.0), objective="pointwise", positive=True, statuses=("no_answer", "no_answer"))
    broken = archived("b", (0.0, 1.0), statuses=("error", "ok"))
    shelves = choose([unread, broken]).shelves
    assert [shelf.title for shelf in shelves] == ["Best"]


def test_what_was_dropped_is_not_called_best() -> None:
    assert choose([archived("u", outcome="dropped_stale")]).shelves == ()


def test_the_card_of_a_judge_task_goes_back_to_the_answer_it_shows() -> None:
    source = archived("source", (1.0, 0.0), text="17 is the sum")
    judged = archived("judge", (0.0, 0.0), objective="pointwise", positive=False, sources=[("source", 1)])
    made = card("t", Pick(record=judged, sample=0), Related(sources={"source": source}, judged={}))
    assert made.lineage[0].title == "Shown answer: wrong, written by version 2"
    assert made.lineage[0].text == "17 is the sum 1"
    assert made.lineage[0].uid == "source"
    assert "version 3, version 4 from token 2" in made.lineage[2].title
    assert made.lineage[3].title == "Trained in optimizer step 5"
    assert not made.right
    assert made.verdict.startswith("Wrong: answered 7, expected 7")


def test_the_card_of_a_solution_goes_on_to_what_was_made_of_it() -> None:
    solved = archived("s", (1.0, 0.0))
    judged = archived("j", (1.0, 0.0), objective="reflect", positive=True, sources=[("s", 1)], outcome="filtered")
    stages = card("t", Pick(record=solved, sample=0), Related(sources={}, judged={"s": [judged]})).lineage
    assert stages[0].detail == "prompt 11 of the source, in pass 1"
    assert stages[-1].title == "Recycled (reflect), shows completion 2: 1 of 2 repairs right"
    assert stages[-1].detail == "filtered at version 5"


def test_a_source_that_the_archive_lost_is_said() -> None:
    judged = archived("j", objective="pointwise", positive=True, sources=[("gone", 0)])
    stage = card("t", Pick(record=judged, sample=0), NOTHING).lineage[0]
    assert "not in the archive any more" in stage.detail


def test_a_long_text_keeps_both_ends_and_says_what_is_missing() -> None:
    text = clipped("a" * 900 + "b" * 900, 300)
    assert text.startswith("a" * 200)
    assert text.endswith("b" * 100)
    assert "1,500 characters left out" in text
    assert clipped("short", 300) == "short"


def test_a_card_is_bounded_however_long_its_texts_are() -> None:
    record = archived("u", (1.0, 0.0), prompt="p\u202e" * 50_000, text="c" * 90_000)
    made = card("t", Pick(record=record, sample=0), NOTHING)
    assert len(made.prompt) < MOST_TEXT + 2 * MARKER
    assert len(made.completion) < MOST_TEXT + 2 * MARKER


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\nb", "a\nb"),
        ("\x1b[0m", "\\x1b[0m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\ud800", "\\ud800"),
        ("ab\u200dc\u3000d\u00a0e", "ab\u200dc\u3000d\u00a0e"),
        ("שלום 漢字 é", "שלום 漢字 é"),
        ("\r", "\\r"),
    ],
)
def test_only_what_steers_is_written_out(text: str, seen: str) -> None:
    assert visible(text) == seen
    assert visible(seen) == seen


@pytest.mark.parametrize("at", [1e300, -1e300, float("inf")])
def test_an_impossible_time_is_said(at: float) -> None:
    assert moment(at) == "at an impossible time"


def test_the_newest_record_of_a_uid_counts(tmp_path: Path) -> None:
    write_archive(tmp_path / "g", [archived("a", version=1), archived("b", version=1)], [archived("a", version=2)])
    assert [(r.uid, r.policy_version) for r in newest(tmp_path / "g")] == [("a", 2), ("b", 1)]
    assert related(tmp_path / "g", {"a"}, set()).sources["a"].policy_version == 2


def test_only_so_many_groups_are_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "g", *([archived(f"u{step}", version=step)] for step in range(1, 10)))
    monkeypatch.setattr(report_archive, "MOST_GROUPS", 3)
    assert [record.uid for record in newest(tmp_path / "g")] == ["u9", "u8", "u7"]


def test_no_archive_is_no_sample(tmp_path: Path) -> None:
    assert list(newest(tmp_path / "none")) == []
    assert '<h2 id="samples"' not in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_damaged_block_is_passed_over(tmp_path: Path) -> None:
    write_archive(tmp_path / "g", [archived("a", version=1)], [archived("b", version=2)])
    (path,) = (tmp_path / "g").iterdir()
    data = bytearray(path.read_bytes())
    data[-20] ^= 0xFF
    path.write_bytes(bytes(data))
    assert [record.uid for record in newest(tmp_path / "g")] == ["a"]


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_hostile_text_of_models_and_datasets_stays_text(tmp_path: Path) -> None:
    clean = HOSTILE.encode("utf-8", "replace").decode()  # messages carry UTF-8 only; the rest comes from the files
    right = archived("<b>uid</b>", prompt=clean, text=clean, actor="<i>actor\u202e")
    judged = archived(
        "j", (0.0, 0.0), objective="pointwise", positive=False, sources=[("<b>uid</b>", 0)], prompt=clean, text=clean
    )
    write_archive(tmp_path / "groups", [right, judged])
    (tmp_path / "config.toml").write_text(f"preset = 'x'\n[run]\nname = 'r'\n[model]\npath = {HOSTILE_TOML}\n")
    (tmp_path / "summary.json").write_text('{"before": {"<script>": 1.0, "\\ud800": 2.0}, "after": {}}')
    text = write_report(tmp_path).read_bytes().decode("utf-8")
    found = Tags(text)
    assert found.tags.isdisjoint({"script", "img", "b", "iframe"})
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)" in text
    assert "{{ 7 * 7 }}" in text
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text) == []
    assert "\\u202e" in text
