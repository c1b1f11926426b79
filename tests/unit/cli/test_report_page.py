"""The page: complete, self-contained, escaped, and there whatever is missing."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_groups import archived, write_archive

from cli.report import write_report
from cli.report.charts import Bounds, Chart, Line, Mark, Panel
from cli.report.curves import sections
from cli.report.history import STEP, History
from cli.report.lede import lede
from cli.report.material import read_material
from cli.report.palette import PALETTE
from cli.report.provenance import circumstances, facts
from cli.report.words import number, points, seconds
from common.settings import Staleness

CONFIG = """
preset = "spark"
[run]
name = "demo"
[model]
path = "a<b>&c"
[staleness]
max_staleness = 1
[learner]
max_steps = 40
"""
COUNTS = {"issued": 9, "trained": 4, "filtered": 3, "dropped_stale": 0, "dead": 0, "in_flight": 2}
SUMMARY = {
    "before": {"policy": 0.25, "break": 0.5},
    "after": {"policy": 0.75, "break": 0.1},
    "intervals": {"before": {"policy": [0.2, 0.3]}, "after": {"policy": [0.7, 0.8]}},
    "ledger": {"policy": COUNTS, "judge": COUNTS, "balanced": True},
    "wall_s": 75.0,
    "finished": True,
}
PLOTS = 18
VOID = {"meta", "link", "br", "hr", "img", "input"}


def step(number: int, **more: float) -> dict[str, float]:
    objectives = ("solve", "pointwise", "pairwise", "reflect")
    by_objective = {
        f"{name}/{o}": 0.5 + number / 100
        for name in ("reward", "ess", "entropy", "no_answer", "positive")
        for o in objectives
    }
    panel = ("balanced_accuracy", "tpr", "tnr", "auroc", "ece", "ece_floor", "pairwise_accuracy", "swap_consistency")
    judge = {f"judge/{name}": 0.5 for name in (*panel, "accuracy/age_0", "accuracy/age_2", "false_positive/empty")}
    stages = {f"seconds/{stage}": 0.25 for stage in ("wait_for_groups", "step", "publish", "checkpoint")}
    return {
        STEP: number,
        "kl": 10.0**-number,
        "ratio_max": 1.5,
        "grad_norm": 1.0,
        "lr": 1e-4,
        "samples": 64.0,
        "staleness": 0.5,
        "staleness_max": 1.0,
        "content_staleness": 1.0,
        "content_staleness_max": 2.0,
        "length": 12.0,
        "tokens": 900.0,
        "tokens/staleness_0": 300.0,
        "tokens/staleness_1": 600.0,
        "judge/false_positive/master_key": 0.25,
        "reflect/fixed": 0.5,
        "reflect/kept": 0.5,
        "trained/policy": 16.0,
        **by_objective,
        **judge,
        **stages,
        **more,
    }


def write_run(folder: Path) -> Path:
    (folder / "config.toml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step(i)) + "\n" for i in range(1, 31)))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    solved, judged = archived("solved"), archived("judged", (0.0, 1.0), objective="pointwise", positive=True)
    write_archive(folder / "groups", [solved, judged])
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run that has everything; drawn once, since that takes a second."""
    run = write_run(tmp_path_factory.mktemp("whole"))
    page = page_of(run)
    assert {path.name for path in run.iterdir()} == {
        "config.toml",
        "groups",
        "metrics.jsonl",
        "report.html",
        "summary.json",
    }
    return page


class Page(HTMLParser):
    """Checks that tags nest, and collects ids, references and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        values = dict(attrs)
        self.ids += [str(values["id"])] if "id" in values else []
        self.links += [str(values[name]) for name in ("href", "src", "xlink:href") if name in values]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_a_whole_run(whole: str) -> None:
    page = Page(whole)
    assert page.tags.count("figure") == PLOTS
    assert "Not measured" not in whole
    assert "30 of 40" in whole
    assert "+50.0" in whole
    assert "−40.0" in whole
    assert "20.0\u00a0% to 30.0\u00a0%" in whole
    assert "The ledger balances." in whole
    assert "1 min 15 s" in whole
    assert 'class="notes"' not in whole


def test_the_page_needs_no_network_and_no_script(whole: str) -> None:
    page = Page(whole)
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "@import" not in whole
    assert re.findall(r"url\((?!#)", whole) == []
    assert "<metadata" not in whole


def test_headings_go_down_one_level_at_a_time(whole: str) -> None:
    levels = [int(tag[1]) for tag in Page(whole).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert {1, 2, 3, 4} == set(levels)
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_plot_is_told_in_words_and_has_its_values_in_a_table(whole: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", whole, flags=re.DOTALL)
    assert len(figures) == PLOTS
    for figure in figures:
        assert re.search(r'<svg [^>]*role="img"[^>]*aria-label="[^"]*(from|throughout)', figure)
        assert figure.count("<tr>") >= 2
    reward = next(figure for figure in figures if 'id="reward"' in figure)
    assert "solve: from 51.0\u00a0% to 80.0\u00a0%" in reward
    assert re.search(r'<th scope="row">30</th><td>80.0\u00a0%</td>', reward)


def test_ids_are_unique_and_every_reference_has_its_target(whole: str) -> None:
    page = Page(whole)
    assert len(page.ids) == len(set(page.ids))
    targets = set(re.findall(r"url\(#([^)]+)\)", whole)) | {link[1:] for link in page.links if link.startswith("#")}
    assert targets
    assert targets <= set(page.ids)


def test_text_from_the_run_is_escaped(whole: str) -> None:
    assert "a&lt;b&gt;&amp;c" in whole
    assert "a<b>" not in whole


def test_plots_take_their_colours_from_the_page(whole: str) -> None:
    figures = re.findall(r"<svg .*?</svg>", whole, flags=re.DOTALL)
    assert {name for name in PALETTE if f"var(--{name})" in "".join(figures)} == set(PALETTE) - {"ink", "card"}
    assert re.findall(r"#[0-9a-f]{6}", "".join(figures)) == []


@pytest.mark.parametrize("missing", ["config.toml", "metrics.jsonl", "summary.json"])
def test_a_missing_file_is_named(run: Path, missing: str) -> None:
    assert read_material(run).notes == ()
    (run / missing).unlink()
    (note,) = read_material(run).notes
    assert note.startswith(f"{missing} is missing")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.toml", "[run"),
        ("config.toml", "[staleness]\nmax_staleness = -3"),
        ("config.toml", "staleness = 3"),
        ("summary.json", '{"before": {"pol'),
        ("summary.json", '{"before": 7}'),
        ("eval/after.json", "{}"),
    ],
)
def test_a_file_that_is_only_partly_written_is_named(run: Path, file: str, content: str) -> None:
    (run / "eval").mkdir()
    (run / file).write_text(content)
    (note,) = read_material(run).notes
    assert note.startswith(f"{file} cannot be read (")


def test_torn_lines_are_counted(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"policy_version": 31, "kl"')
    assert read_material(run).notes == ("metrics.jsonl: 1 torn or unreadable line(s) skipped.",)


@pytest.mark.parametrize(("written", "trusted"), [(30, True), (29, False), (31, False), (None, True)])
def test_a_run_that_went_on_does_not_show_its_old_ledger(run: Path, written: int | None, trusted: bool) -> None:
    (run / "summary.json").write_text(json.dumps({**SUMMARY, "policy_version": written}))
    material = read_material(run)
    assert (material.summary.ledger is not None) is trusted
    assert material.summary.finished is (True if trusted else None)
    assert material.summary.after is not None
    assert any("has gone on" in note for note in material.notes) is not trusted


def test_replaced_steps_are_counted(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step(29)) + "\n")
    (note,) = read_material(run).notes
    assert "resumed" in note
    assert "2 line(s)" in note


def test_an_empty_directory_still_gives_a_page(tmp_path: Path) -> None:
    text = page_of(tmp_path)
    assert Page(text).tags.count("svg") == 0
    assert text.count("Not measured: ") == 5
    assert text.count(" is missing: ") + text.count(" is missing. ") == 3
    assert "No ledger yet" in text


@pytest.mark.parametrize("steps", [1, 11])
def test_a_young_run_with_values_that_are_not_finite(run: Path, steps: int) -> None:
    rows = [step(i, grad_norm=math.nan, kl=math.inf, ratio_max=0.0) for i in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Page(page_of(run))


def test_a_run_without_judging_says_what_it_does_not_have(run: Path) -> None:
    rows = [{STEP: i, "reward/solve": 0.5, "seconds/step": 1.0} for i in range(1, 20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page_of(run)
    assert "Not measured: pointwise judge, both ways, pairwise judge, calibration," in text
    assert Page(text).tags.count("figure") == 2


def test_a_long_run_with_long_texts_stays_light(tmp_path: Path) -> None:
    """The bound that README and docs promise: 3 MB, however long a run is and whatever its texts hold."""
    run, steps = write_run(tmp_path), 1500
    noise = np.random.default_rng(0).random((steps, 64)).round(6)
    names = [name for name in step(1) if name != STEP]
    with (run / "metrics.jsonl").open("w") as file:
        for i in range(steps):
            file.write(json.dumps({STEP: i + 1, **dict(zip(names, map(float, noise[i]), strict=False))}) + "\n")
    nasty = "\u202e<&\"'" * 20_000
    kinds: list[Any] = ["solve", "reflect", "reflect", "pointwise", "pointwise", "pairwise"]
    groups = [archived(f"s{i}", (0.0, 1.0), prompt=nasty, text=nasty) for i in range(4)]
    for i, kind in enumerate(kinds[1:]):
        more: dict[str, Any] = {"objective": kind, "positive": bool(i % 2), "sources": [("s0", 0), ("s1", 1)]}
        groups.append(archived(f"j{i}", (0.0, 1.0), prompt=nasty, text=nasty, **more))
    (run / "groups" / "e000001-s00000001.groups").unlink()
    (run / "groups").rmdir()
    write_archive(run / "groups", groups)
    started = (run / "config.toml").read_text()
    (run / "config.toml").write_text(started + "[prompts]\nargs = { text = '" + "<" * 300_000 + "' }\n")
    text = page_of(run)
    assert len(text.encode()) < 3_000_000
    assert text.count('<article class="card"') == 9


def test_the_same_curves_give_the_same_drawing() -> None:
    from cli.report.plots import draw

    chart = charts_of(Bounds())["gradient"]
    assert draw(chart, [1, 2], 1) == draw(chart, [1, 2], 1)


def test_matplotlib_is_loaded_only_to_draw() -> None:
    code = "import sys, cli.report, cli.progress; assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def charts_of(bounds: Bounds) -> dict[str, Chart]:
    history = History(rows=(step(1), step(2)))
    return {chart.slug: chart for section in sections(history, bounds) for chart in section.charts}


def test_bounds_and_alarms_are_marked() -> None:
    charts = charts_of(Bounds(staleness=Staleness(max_staleness=1)))
    assert [mark.level for mark in charts["group-staleness"].panels[0].marks] == [1, 4]
    assert [panel.marks[0].level for panel in charts["divergence"].panels] == [0.1, 10.0]
    assert charts_of(Bounds())["group-staleness"].panels[0].marks == ()


def test_shares_of_time_fill_the_whole() -> None:
    lines = charts_of(Bounds())["time"].panels[0].lines
    assert sum(line.values[0] for line in lines) == pytest.approx(1.0)


def test_speed_counts_samples_over_the_learners_time() -> None:
    samples, tokens = charts_of(Bounds())["speed"].panels
    assert samples.lines[0].values[0] == pytest.approx(64.0)
    assert tokens.lines[0].values[0] == pytest.approx(900.0)


@pytest.mark.parametrize(
    ("panel", "low", "high"),
    [
        ({"low": 0, "high": 1, "stacked": True}, 0.0, 1.0),
        ({"low": 1.0, "high": 20.0, "log": True}, 0.5, 20.0),
        ({"marks": (Mark(level=4, label="bound"),), "low": 0, "high": 1}, 0.0, 4.0),
    ],
)
def test_limits_hold_everything(panel: dict[str, Any], low: float, high: float) -> None:
    from cli.report.plots import limits

    line = Line(label="x", values=[0.5, math.nan, 0.75], colour="blue")
    bottom, top = limits(Panel(lines=(line,), **panel))
    assert bottom <= low
    assert top >= high


@pytest.mark.parametrize(("value", "text"), [(0.1, "0.1"), (10.0, "10"), (1e-5, "10⁻⁵"), (1000.0, "10³")])
def test_powers_of_ten(value: float, text: str) -> None:
    from cli.report.plots import power

    assert power(value) == text


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (number, 57416.0, "57,416"),
        (number, 3.21e-5, "3.21e-5"),
        (number, math.nan, "not finite"),
        (number, 16.0, "16"),
        (points, 0.0001, "0.0"),
        (points, -0.0004, "0.0"),
        (points, -0.26, "−26.0"),
        (seconds, 7.25, "7.2 s"),
        (seconds, 59.99, "1 min 0 s"),
        (seconds, 3700.0, "1 h 1 min"),
    ],
)
def test_numbers_for_people(form: Callable[[float], str], value: float, text: str) -> None:
    assert form(value) == text


def test_a_pause_is_no_training_time(run: Path) -> None:
    rows = [{STEP: i, "samples": 8.0, "seconds/step": 1.0, "elapsed_s": 20.0} for i in range(1, 4)]
    rows[1]["seconds/paused"] = 15.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    material = read_material(run)
    assert dict(facts(material))["Training time"] == "1 min 0 s, and 15.0 s paused"
    assert "5.0 s of steps, publishing and waiting" in dict(circumstances(material)).values()
    assert "3 optimizer steps in 1 min 0 s, and 15.0 s paused, 24" in " ".join(lede(material))
    [speed] = [c for section in sections(material.history, Bounds()) for c in section.charts if c.slug == "speed"]
    assert speed.panels[0].lines[0].values == pytest.approx([8.0, 8.0, 8.0])


def test_facts_leave_out_what_is_unknown(tmp_path: Path) -> None:
    assert facts(read_material(tmp_path)) == []


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("ground", ["paper", "card"])
@pytest.mark.parametrize("name", sorted(set(PALETTE) - {"paper", "card", "rule"}))
def test_every_colour_can_be_read_on_both_grounds(name: str, ground: str, theme: int) -> None:
    lower, higher = sorted((luminance(PALETTE[name][theme]), luminance(PALETTE[ground][theme])))
    assert (higher + 0.05) / (lower + 0.05) >= 4.5
