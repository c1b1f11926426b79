"""The alerts of infra/prometheus: about metrics that the code tells, complete, documented, and right by `promtool`."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards import DASHBOARDS, ROOT, RULES, all_queries, rule_queries, strangers

FOLDER = RULES.parent
OPERATIONS = ROOT / "docs" / "operations.md"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not on PATH: it is in Debian's package prometheus and in Prometheus' releases"
)

Json = dict[str, Any]


@pytest.fixture
def rules() -> Json:
    loaded: Json = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return loaded


def alerts(rules: Json) -> list[Json]:
    return [rule for group in rules["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> tuple[int, str]:
    """Exit status, and all that it said."""
    assert PROMTOOL is not None
    said = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False, timeout=120)
    return said.returncode, said.stdout + said.stderr


def test_every_alert_says_how_grave_it_is_what_it_is_and_where_to_read_on(rules: Json) -> None:
    names = [alert["alert"] for alert in alerts(rules)]
    assert len(names) == len(set(names))
    for alert in alerts(rules):
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}
        assert alert["annotations"]["summary"].startswith("{{ $labels.spark_run }}: ")
        path, _, place = alert["annotations"]["runbook"].partition("#")
        assert (ROOT / path) == OPERATIONS
        assert place == "alerts"


def test_operations_has_a_line_for_every_alert(rules: Json) -> None:
    section = OPERATIONS.read_text(encoding="utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `Spark")]
    documented = {row[0].strip("| `"): row[1] for row in rows}
    assert documented == {alert["alert"]: alert["labels"]["severity"] for alert in alerts(rules)}


def test_every_alert_is_about_metrics_and_labels_that_the_code_tells(rules: Json) -> None:
    assert [wrong for query in rule_queries(rules) for wrong in strangers(*query)] == []


def test_a_misspelt_name_is_caught(rules: Json) -> None:
    spoilt = copy.deepcopy(rules)
    [alert] = [rule for rule in alerts(spoilt) if rule["alert"] == "SparkDiskFull"]
    alert["expr"] = alert["expr"].replace("disk_free_mebibytes", "disk_free_megabytes")
    [found] = [wrong for query in rule_queries(spoilt) for wrong in strangers(*query)]
    assert found == "SparkDiskFull: no metric spark_learner_disk_free_megabytes"


def test_every_alert_has_a_case_in_which_it_fires(rules: Json) -> None:
    cases = yaml.safe_load((FOLDER / "rules_test.yml").read_text(encoding="utf-8"))
    assert cases["rule_files"] == [RULES.name]
    expected = str([test["exp_samples"] for case in cases["tests"] for test in case["promql_expr_test"]
                    if "exp_samples" in test])  # fmt: skip
    assert [alert["alert"] for alert in alerts(rules) if f'alertname="{alert["alert"]}"' not in expected] == []


@needs_promtool
def test_promtool_takes_the_rules_and_all_queries_of_the_dashboards(tmp_path: Path) -> None:
    queries = [query.replace("$__rate_interval", "5m") for _, query, _ in all_queries()]
    panels = [{"record": f"q{index}", "expr": query} for index, query in enumerate(queries)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": panels}]}))
    for path, number in (
        (RULES, len(alerts(yaml.safe_load(RULES.read_text())))),
        (tmp_path / "panels.yml", len(panels)),
    ):
        status, said = promtool("check", "rules", str(path))
        assert status == 0, said
        assert f"SUCCESS: {number} rules found" in said
    assert len(panels) > len(DASHBOARDS) * 10


@needs_promtool
def test_promtool_sees_every_alert_fire_when_it_should(tmp_path: Path) -> None:
    status, said = promtool("test", "rules", str(FOLDER / "rules_test.yml"))
    assert status == 0, said


@needs_promtool
def test_promtool_sees_an_alert_that_never_fires_and_an_expression_that_is_none(tmp_path: Path) -> None:
    text = RULES.read_text(encoding="utf-8")
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    for right, wrong in (("spark_learner_alarms) > 0", "spark_learner_alarms) > 1"), ("max by (", "max by by (")):
        assert right in text
        (tmp_path / "rules.yml").write_text(text.replace(right, wrong), encoding="utf-8")
        status, said = promtool("test", "rules", str(tmp_path / "rules_test.yml"))
        assert status != 0, said
