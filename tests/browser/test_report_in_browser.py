"""The report in a real browser: nothing loads, nothing complains, nothing sticks out, in both widths and both schemes.

Needs Chromium on the PATH (``apt-get install chromium``), and is skipped without. To look at a report with the same
eyes: ``chromium --headless --no-sandbox --screenshot=OUT.png --window-size=1280,10000 RUN/report.html``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from devtools import DevTools, browser, find_browser
from report_groups import archived, write_archive

from cli.report import write_report
from cli.report.palette import PALETTE

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
LONG = "unbroken" * 60
FOREIGN = f"</pre><script>document.title = 'changed'</script><img src=https://example.org/x.png> \u202e{LONG}"
COUNTS = {
    "issued": 3_000_000,
    "trained": 2_000_000,
    "filtered": 1_000_000,
    "dropped_stale": 0,
    "dead": 0,
    "in_flight": 0,
}
STICKING_OUT = """[...document.querySelectorAll('body *')]
    .filter(one => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.scroll, svg'))
    .map(one => one.tagName + '.' + one.className)"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose texts try to break out of the page, and out of their columns."""
    run = tmp_path_factory.mktemp("run")
    objectives = ("solve", "pointwise", "pairwise", "reflect")
    rows = (
        {"policy_version": i, "kl": 1e-3, "judge/tpr": 0.5, **{f"reward/{o}": math.sin(i) ** 2 for o in objectives}}
        for i in range(1, 60)
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.toml").write_text(f'preset = "spark"\n[run]\nname = "r"\n[model]\npath = "/{LONG}"\n')
    figures = {"policy": 0.5, LONG: 0.5}
    ledger = {"policy": COUNTS, "judge": COUNTS, "balanced": True}
    (run / "summary.json").write_text(json.dumps({"before": figures, "after": figures, "ledger": ledger}))
    solved = archived("solved" * 6, prompt=FOREIGN, text=FOREIGN, actor=LONG)
    judged = archived("j", (0.0, 0.0), objective="pointwise", positive=True, sources=[(solved.uid, 0)], text=FOREIGN)
    write_archive(run / "groups", [solved, judged])
    return write_report(run)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevTools]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium on the PATH; apt-get install chromium")
    with browser(path, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_as_it_is_seen(page: DevTools, report: Path, width: int, scheme: str) -> None:
    page.open(report, width=width, scheme=scheme)
    assert page.value("document.title") == "r – SPARK training report"
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(STICKING_OUT) == []
    requests = [event["request"]["url"] for event in page.named("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert page.named("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_plots_and_page_follow_the_colour_scheme(page: DevTools, report: Path, scheme: str) -> None:
    page.open(report, width=1280, scheme=scheme)
    column = SCHEMES.index(scheme)
    assert page.value("getComputedStyle(document.body).backgroundColor") == rgb(PALETTE["paper"][column])
    strokes = page.value("[...document.querySelectorAll('#reward path')].map(p => getComputedStyle(p).stroke)")
    assert rgb(PALETTE["blue"][column]) in strokes
    assert rgb(PALETTE["blue"][1 - column]) not in strokes


def test_print_is_light_whatever_the_screen_is(page: DevTools, report: Path) -> None:
    page.open(report, width=1280, scheme="dark")
    page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.value("getComputedStyle(document.body).backgroundColor") == rgb(PALETTE["paper"][0])
    page.call("Emulation.setEmulatedMedia", media="")


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"
