"""Grafana's dashboards: sound, laid out without overlaps, and about metrics that the code tells."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from dashboards import DASHBOARDS, ROOT, all_queries, dashboard_queries, no_figures, strangers, unanswered
from promql import Matcher, Selector, read

Json = dict[str, Any]
KINDS = {"row", "stat", "table", "timeseries", "heatmap"}


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> Json:
    loaded: Json = json.loads(Path(request.param).read_text(encoding="utf-8"))
    return loaded


def overlaps(one: Json, other: Json) -> bool:
    a, b = one["gridPos"], other["gridPos"]
    return bool(
        a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]
    )


def test_the_files_are_what_the_code_beside_them_says() -> None:
    script = ROOT / "infra" / "grafana" / "build.py"
    said = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False, timeout=60
    )
    assert said.returncode == 0, said.stderr
    assert [path.stem for path in DASHBOARDS] == ["spark-fleet", "spark-learning", "spark-run"]


def test_a_dashboard_is_one_that_grafana_can_load(dashboard: Json) -> None:
    assert dashboard["schemaVersion"] == 41
    assert dashboard["uid"] in {path.stem for path in DASHBOARDS}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert [number for number, times in Counter(ids).items() if times > 1] == []
    assert {panel["type"] for panel in dashboard["panels"]} <= KINDS
    for panel in dashboard["panels"]:
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(refs) == len(set(refs))


def test_panels_lie_beside_each_other(dashboard: Json) -> None:
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    assert [(a["title"], b["title"]) for a, b in combinations(dashboard["panels"], 2) if overlaps(a, b)] == []
    plots = [panel for panel in dashboard["panels"] if panel["type"] in ("timeseries", "heatmap")]
    assert all(panel["gridPos"]["w"] >= 8 for panel in plots)  # 430 px of a screen of 1366 px


def test_the_user_chooses_source_run_and_member(dashboard: Json) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    asked = {"datasource", "run"} | ({"member"} if dashboard["uid"] == "spark-fleet" else set())
    assert set(variables) == asked
    for variable in list(variables.values())[1:]:
        inside = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert inside
        assert strangers(variable["name"], inside[1].replace("$run", "demo"), f"{{{{{inside[2]}}}}}") == []


def test_every_panel_asks_the_chosen_source_about_the_chosen_run_and_says_what_is_bad(dashboard: Json) -> None:
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        assert len(panel["description"]) > 60, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            selectors = read(target["expr"]).selectors
            assert all(Matcher("spark_run", "=", "$run") in selector.matchers for selector in selectors)


def test_every_query_is_about_metrics_and_labels_that_the_code_tells(dashboard: Json) -> None:
    assert [wrong for query in dashboard_queries(dashboard) for wrong in strangers(*query)] == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("spark_learner_steps{", "spark_learner_step{", "no metric spark_learner_step"),
        ("spark_staleness_bucket{", "spark_staleness{", "no metric spark_staleness"),
        ("by (stream, group)", "by (stream, grup)", "no label grup"),
        ('outcome="trained"', 'outcom="trained"', "has no label outcom"),
    ],
)
def test_a_misspelt_name_is_caught(right: str, wrong: str, said: str) -> None:
    dashboard = json.loads(next(path for path in DASHBOARDS if path.stem == "spark-run").read_text(encoding="utf-8"))
    spoilt = copy.deepcopy(dashboard)
    for panel in spoilt["panels"]:
        for target in panel.get("targets", ()):
            target["expr"] = target["expr"].replace(right, wrong)
    assert spoilt != dashboard
    found = [stranger for query in dashboard_queries(spoilt) for stranger in strangers(*query)]
    assert found
    assert all(said in stranger for stranger in found)


def test_every_figure_that_is_asked_for_is_documented() -> None:
    assert [(where, wrong) for where, query, _ in all_queries() for wrong in no_figures(query)] == []
    assert no_figures('spark_judge_score{figure=~"tpr|trn|accuracy/aged_.+"}') == ["trn", "accuracy/aged_.+"]


def test_what_a_scrape_does_not_tell_is_found() -> None:
    scrape = '# TYPE spark_members gauge\nspark_members{alive="true",spark_run="demo"} 4.0\n'
    queries = [(word, f'max(spark_members{{alive="{word}"}})', "") for word in ("true", "yes")]
    assert [found.partition(":")[0] for found in unanswered([scrape], queries)] == ["yes"]
    assert len(unanswered([], queries)) == 2


def test_a_legend_of_no_label_is_caught() -> None:
    assert strangers("x", "sum by (spark_member) (spark_members)", "{{member}}") == ["x: no label member"]


def test_the_tokeniser_tells_metrics_from_all_else() -> None:
    query = """
        histogram_quantile(0.95, sum by (le, job) (rate(a_bucket{x=~"b|c{d}", y!='e'}[$__rate_interval]))) # f(g)
          / on (run) group_left (z) max(h offset 5m) > bool 1e3 unless avg without (i) (j[30m:1m] @ 5) or 2 * -k
    """
    found = read(query)
    metrics = {selector.metric for selector in found.selectors}
    assert metrics == {"a_bucket", "h", "j", "k"}
    assert found.grouped_by == {"le", "job", "run", "z", "i"}
    assert found.selectors[0] == Selector("a_bucket", [Matcher("x", "=~", "b|c{d}"), Matcher("y", "!=", "e")])


@pytest.mark.parametrize("query", ['a{b="c}', "a ? b", "sum by (c", '{a="b"}', 'a{b="c",d}'])
def test_the_tokeniser_refuses_what_it_does_not_know(query: str) -> None:
    with pytest.raises(ValueError, match=r"no |braces"):
        read(query)
