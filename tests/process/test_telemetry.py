"""What a real run tells a real collector and Prometheus, and a collector that is down, or answers nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from collector import Collector, Told, collecting
from dashboards import all_queries, unanswered
from run_harness import DEADLINE_S, DEMO, Up, command, environment, until

from cli.embedded import EmbeddedServer
from common.server import connect, load_functions
from common.telemetry.names import METRICS, REDIS_PREFIXES, RESOURCE, SPANS
from common.telemetry.sdk import port_of

PASSWORD = "hunter2-hunter2"
OURS = ("spark.", "gen_ai.")


def free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for base in range(21000 + os.getpid() % 1000 * 20, 60000, number):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(base, base + number):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return base
    raise AssertionError("no free ports")


def scrape(port: int) -> str:
    """What Prometheus would read; empty while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def families(text: str) -> set[str]:
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}


def known(role: str) -> set[str]:
    """Prometheus' names of what a role may tell of ours."""
    return {metric.prometheus for metric in METRICS if role in metric.roles}


def of_redis(family: str) -> bool:
    return family.startswith(tuple(prefix.replace(".", "_") for prefix in REDIS_PREFIXES))


def test_a_run_is_told_from_the_issue_of_a_prompt_to_the_step_that_trained_it(start: Callable[..., Up]) -> None:
    base = free_ports(4)
    roles = {port_of(base, role, member): role for role, member in MEMBERS}
    scraped = dict.fromkeys(roles, "")
    with collecting() as collector:
        up = start(
            f"telemetry.endpoint={collector.url}",
            f"telemetry.prometheus_port={base}",
            "telemetry.interval_s=1",
            "learner.max_steps=6",
            "learner.judge_wait_s=30",
        )
        while up.process.poll() is None:
            scraped = {port: scrape(port) or before for port, before in scraped.items()}
            with contextlib.suppress(subprocess.TimeoutExpired):
                up.process.wait(timeout=0.5)
        assert up.wait() == 0, up.output.read_text()
    check_metrics(collector)
    for port, role in roles.items():
        check_scrape(scraped[port], role)
    assert unanswered(list(scraped.values()), all_queries()) == []
    check_spans(collector)


MEMBERS = (("learner", "learner"), ("recycler", "recycler"), ("actor", "actor-0"), ("actor", "actor-1"))


def check_metrics(collector: Collector) -> None:
    """Every metric of the table was told by the roles it names, with the unit it has there, and no other of ours."""
    told = collector.metrics
    ours = {key for key in told if key[1].startswith(OURS)}
    assert ours == {(f"spark-{role}", metric.name) for metric in METRICS for role in metric.roles}
    assert {name.split(".")[0] for _, name in told} == {"spark", "gen_ai", "db", "redis"}
    for metric in METRICS:
        found = told[f"spark-{metric.roles[0]}", metric.name]
        assert (found.unit, found.description) == (metric.unit, metric.meaning)


def check_scrape(text: str, role: str) -> None:
    found = families(text)
    assert found - known(role) - {"target_info"} == {family for family in found if of_redis(family)}
    always = {m.prometheus for m in METRICS if role in m.roles and m.origin in ("heartbeat", "server") and not m.labels}
    late = {"spark_learner_waiting_share", "spark_learner_alarms"}
    assert always - late <= found
    samples = [line for line in text.splitlines() if line and not line.startswith(("#", "target_info"))]
    assert all(f'spark_role="{role}"' in line and 'spark_run="demo"' in line for line in samples)


def check_spans(collector: Collector) -> None:
    spans = collector.spans
    by_id = {told.id: told for told in spans}
    assert {told.span.name for told in spans} == {span.name for span in SPANS}
    for told in spans:
        [row] = [span for span in SPANS if span.name == told.span.name]
        assert set(told.attributes) <= set(row.attributes)
        assert told.resource["service.name"].removeprefix("spark-") in row.roles
        assert set(RESOURCE) <= set(told.resource)
    for end in collector.named("spark.end"):
        check_life(end, by_id)


def check_life(end: Told, by_id: dict[str, Told]) -> None:
    """All of a task's trace is there: issued, generated, verified, ended; a trained one in a step that knows it."""
    issue = by_id[end.parent]
    assert end.trace == issue.trace == issue.attributes["spark.uid"]
    family = [told.span.name for told in by_id.values() if told.parent == issue.id]
    assert sorted(family) == ["spark.end", "spark.generate", "spark.verify"]
    if end.attributes["spark.outcome"] == "trained":
        [(trace, step)] = end.links
        assert by_id[step].span.name == "spark.step"
        assert by_id[step].trace == trace
        assert (issue.trace, issue.id) in by_id[step].links
    if issue.attributes["spark.objective"] != "solve":
        [(source, asked)] = issue.links
        assert by_id[asked].trace == source
        assert by_id[asked].resource["spark.role"] == "learner"
        assert issue.resource["spark.role"] == "recycler"


@pytest.fixture
def locked_server(tmp_path: Path) -> Iterator[str]:
    """URL, with its password, of a TCP server that has the stream functions."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"appendonly": "no", "bind": "127.0.0.1"}
    with EmbeddedServer(tmp_path / "server", options=options) as server:
        with closing(connect(server.url)) as client:
            load_functions(client)
            client.config_set("port", port)
            client.config_set("requirepass", PASSWORD)
        yield f"redis://:{PASSWORD}@127.0.0.1:{port}"


class Recycler:
    """A `spark recycler` in the background: the lightest process of a run."""

    def __init__(self, folder: Path, url: str, *settings: str) -> None:
        self.log = folder / "runs" / "demo" / "logs" / "recycler.log"
        overrides = [f"run.dir={folder / 'runs'}", "run.name=demo", "redis.give_up_s=5", *settings]
        self.process = subprocess.Popen(
            command("recycler", str(DEMO), *(part for setting in overrides for part in ("--set", setting))),
            cwd=folder,
            env={**environment(), "SPARK_REDIS__URL": url, "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={PASSWORD}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def events(self) -> list[dict[str, Any]]:
        text = self.log.read_text(encoding="utf-8") if self.log.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events() if one["event"] == event]

    def stop(self) -> str:
        """SIGTERM; what it printed. Fails when it does not end well."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, output
        assert self.said("recycler.stopped")
        return output


@pytest.fixture
def recycler(tmp_path: Path, locked_server: str) -> Iterator[Callable[..., Recycler]]:
    started: list[Recycler] = []

    def start_one(*settings: str) -> Recycler:
        started.append(Recycler(tmp_path, locked_server, *settings))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def test_a_collector_that_refuses_costs_neither_the_run_nor_a_line_per_export(
    recycler: Callable[..., Recycler],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    one = recycler(f"telemetry.endpoint=http://127.0.0.1:{port}", "telemetry.interval_s=0.1")
    until(lambda: one.said("telemetry.trouble"), "the trouble with the collector")
    assert one.process.poll() is None
    output = one.stop()
    sources = [event["source"] for event in one.said("telemetry.trouble")]
    assert len(sources) == len(set(sources))
    assert "Traceback" not in output


def test_a_collector_that_never_answers_is_not_waited_for(recycler: Callable[..., Recycler]) -> None:
    with collecting(stalled=True) as collector:
        one = recycler(f"telemetry.endpoint={collector.url}", "telemetry.interval_s=0.1")
        until(lambda: one.said("recycler.started"), "the recycler")
        one.stop()


def test_no_secret_is_told_and_prometheus_is_served_where_the_log_says(
    recycler: Callable[..., Recycler], tmp_path: Path
) -> None:
    base = free_ports(2)
    with collecting() as collector:
        one = recycler(
            f"telemetry.endpoint={collector.url}", "telemetry.interval_s=0.1", f"telemetry.prometheus_port={base}"
        )
        until(lambda: collector.metrics.get(("spark-recycler", "spark.recycler.room")), "the metrics")
        [event] = one.said("telemetry.started")
        assert event["prometheus"] == f"127.0.0.1:{base + 1}"
        text = scrape(base + 1)
        output = one.stop()
    check_scrape(text, "recycler")
    assert PASSWORD not in text + output
    assert all(PASSWORD.encode() not in body for _, body in collector.bodies)
    logs = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert logs
    assert all(PASSWORD.encode() not in path.read_bytes() for path in logs)


def test_a_port_that_is_taken_costs_the_endpoint_only(recycler: Callable[..., Recycler]) -> None:
    base = free_ports(2)
    with socket.create_server(("127.0.0.1", base + 1)):
        one = recycler(f"telemetry.prometheus_port={base}")
        until(lambda: one.said("recycler.started"), "the recycler")
        [event] = one.said("telemetry.port_taken")
        assert event["port"] == base + 1
        one.stop()
