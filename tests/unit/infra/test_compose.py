"""docker-compose.yml: its schema, and what the schema cannot see. No docker engine is needed, and none was there."""

from __future__ import annotations

import copy
import json
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from compose_rules import findings
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

ROOT = Path(__file__).parents[3]
FILE = ROOT / "docker-compose.yml"

Compose = dict[str, Any]


@pytest.fixture(scope="module")
def loaded() -> Compose:
    document: Compose = yaml.safe_load(FILE.read_text())
    return document


@pytest.fixture
def document(loaded: Compose) -> Compose:
    return copy.deepcopy(loaded)


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    lines = [line for line in (ROOT / ".env").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    """Of the compose specification, as check-jsonschema brings it along."""
    known = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    validator: Draft202012Validator = validator_for(known)(known)
    return validator


def test_it_is_a_compose_file(document: Compose, schema: Draft202012Validator) -> None:
    assert [error.message for error in schema.iter_errors(document)] == []


def test_it_agrees_with_the_service_table_the_repository_and_itself(
    document: Compose, variables: dict[str, str]
) -> None:
    assert findings(document, ROOT, variables) == []
    assert variables["COMPOSE_PROFILES"] in document["services"]["actor"]["profiles"]


@pytest.mark.parametrize(
    ("mutate", "said"),
    [
        (lambda s: s["redis"].update(restarts="always"), "restarts"),
        (lambda s: s["actor"].update(volumes={}), "is not of type"),
        (lambda s: s["learner"]["healthcheck"].update(retries=[]), "not of type"),
        (lambda s: s["learner"]["depends_on"]["bootstrap"].update(condition="healthy"), "healthy"),
    ],
)
def test_a_typo_or_a_wrong_type_is_caught(
    document: Compose, schema: Draft202012Validator, mutate: Callable[[Compose], None], said: str
) -> None:
    mutate(document["services"])
    assert said in " ".join(str(error) for error in schema.iter_errors(document))


MISTAKES: list[tuple[str, Callable[[Compose], object], str]] = [
    ("dangling depends_on", lambda s: s["grafana"]["depends_on"].update(x={"condition": "service_started"}), "no serv"),
    ("no such health", lambda s: s["prometheus"].pop("healthcheck"), "waits for the health of prometheus"),
    ("words for a number", lambda s: s["actor"].update(scale="two"), "scale is 'two'"),
    ("another command", lambda s: s["recycler"]["command"].__setitem__(0, "recycle"), "recycler: runs"),
    ("one name for all actors", lambda s: s["actor"].update(command=["exec spark actor x --name a"]), "actor: runs"),
    ("the health of another", lambda s: s["recycler"]["healthcheck"]["test"].__setitem__(4, "learner"), "health check"),
    ("a role is gone", lambda s: [s.pop(name) for name in ("learner", "learner-gpu")], "no service for learner"),
    ("short grace", lambda s: s["actor"].update(stop_grace_period="10s"), "stop_grace_period"),
    ("container name", lambda s: s["actor"].update(container_name="actor"), "forbids --scale"),
    ("port drift", lambda s: s["recycler"].update(expose=["9464"]), "not where its telemetry listens"),
    ("base port", lambda s: s["learner"]["environment"].update(SPARK_TELEMETRY__PROMETHEUS_PORT="9000"), "telemetry"),
    ("writable weights", lambda s: s["actor"]["volumes"].__setitem__(1, "weights:/weights"), "only the learner writes"),
    ("read-only learner", lambda s: s["learner"]["volumes"].__setitem__(1, "runs:/runs:ro"), "cannot write /runs"),
    ("missing secret", lambda s: s["learner"].update(secrets=[]), "reads /run/secrets/redis.url"),
    ("the admin's secret", lambda s: s["actor"]["secrets"][0].update(source="admin.url"), "other secrets than actor"),
    ("undeclared secret", lambda s: s["redis"]["secrets"][0].update(source="users"), "secret users is not declared"),
    ("undeclared volume", lambda s: s["redis"]["volumes"].append("db:/x"), "volume db is not declared"),
    ("no such file", lambda s: s["redis"]["volumes"].append("./redis.conf:/x:ro"), "not in the repository"),
    ("no such Dockerfile", lambda s: s["learner"]["build"].update(dockerfile="D"), "built from D"),
    ("undeclared network", lambda s: s["redis"]["networks"].append("front"), "network front"),
    ("open port", lambda s: s["grafana"].update(ports=["3000:3000"]), "whole network"),
    ("profile without a learner", lambda s: s["learner-gpu"].update(profiles=["cpu"]), "profile gpu has not one"),
    ("profile leaves out", lambda s: s["recycler"]["depends_on"]["learner"].update(required=True), "leaves out"),
    ("capabilities", lambda s: s["redis"].update(cap_drop=[]), "redis has capabilities"),
    ("writable root", lambda s: s["learner"].update(read_only=False), "learner may write its root"),
    ("privileges", lambda s: s["actor"].update(security_opt=[]), "actor may gain privileges"),
    ("no health check", lambda s: s["recycler"].pop("healthcheck"), "recycler has no health check"),
    ("bare PING", lambda s: s["redis"]["healthcheck"].update(test=["CMD", "valkey-cli", "ping"]), "asked by PING"),
    ("any version", lambda s: s["grafana"].update(image="grafana/grafana:latest"), "takes any version"),
    (
        "wrong URL",
        lambda s: s["actor"]["environment"].update(SPARK_TELEMETRY__ENDPOINT="http://otel:4318"),
        "talks to otel:4318",
    ),
    ("no shared memory", lambda s: s["learner"].pop("shm_size"), "no shm_size"),
]


@pytest.mark.parametrize(("mutate", "said"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_caught(
    document: Compose, variables: dict[str, str], mutate: Callable[[Compose], object], said: str
) -> None:
    mutate(document["services"])
    assert [sentence for sentence in findings(document, ROOT, variables) if said in sentence]


# -- what the containers are given -------------------------------------------------------------------------------


def test_the_script_makes_every_secret_readable_in_a_private_folder(document: Compose, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    script = ["sh", str(ROOT / "infra/compose/prepare.sh"), str(folder)]
    subprocess.run(script, check=True, capture_output=True)
    wanted = {Path(secret["file"]).name for secret in document["secrets"].values()}
    made = {path.name: path for path in folder.iterdir()}
    assert wanted <= made.keys()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(made[name].stat().st_mode) for name in wanted} == {0o644}
    before = {name: path.read_text() for name, path in made.items()}
    subprocess.run(script, check=True, capture_output=True)
    assert before == {name: path.read_text() for name, path in made.items()}  # nobody is locked out
    address = urlsplit(before["actor.url"])
    assert address.hostname in document["services"]
    assert address.port == 6379


def test_the_secrets_and_runs_are_kept_out_of_repository_and_images() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"/secrets/", "runs/", "/infra/k8s/secrets/made/"} <= set(ignored)
    first, *let_in = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("#", "")]
    assert first == "*"
    assert not {"!secrets", "!runs", "!.venv", "!.env"} & set(let_in)


def test_the_server_keeps_what_it_acknowledged(document: Compose) -> None:
    conf = dict(re.findall(r"^([a-z-]+) (.+)$", (ROOT / "infra/redis/redis.conf").read_text(), re.MULTILINE))
    assert (conf["maxmemory-policy"], conf["appendonly"], conf["appendfsync"]) == ("noeviction", "yes", "everysec")
    redis = document["services"]["redis"]
    assert conf["aclfile"] in {f"/run/secrets/{secret['target']}" for secret in redis["secrets"]}
    assert f"redis:{conf['dir']}" in redis["volumes"]
    memory = {name: int(text[:-2] if text.endswith("gb") else text[:-1]) for name, text in (
        ("data", conf["maxmemory"]), ("container", redis["deploy"]["resources"]["limits"]["memory"])
    )}  # fmt: skip
    assert memory["container"] >= 1.5 * memory["data"]  # an AOF rewrite forks


def test_prometheus_reads_every_process_where_its_telemetry_listens(document: Compose) -> None:
    jobs = yaml.safe_load((ROOT / "infra/prometheus/prometheus.yml").read_text())["scrape_configs"]
    services = document["services"]
    scraped = {(found["names"][0], str(found["port"])) for job in jobs for found in job["dns_sd_configs"]}
    assert scraped == {(role, services[role]["expose"][0]) for role in ("learner", "recycler", "actor")}
    for role in ("learner", "actor"):  # the services of the other profile go by the same name
        assert services[f"{role}-gpu"]["networks"]["run"]["aliases"] == [role]


def test_rules_dashboards_and_collector_are_where_their_readers_look(document: Compose) -> None:
    services = document["services"]
    mounted = {
        name: [mount.split(":")[1] for mount in service.get("volumes", ())] for name, service in services.items()
    }
    prometheus = yaml.safe_load((ROOT / "infra/prometheus/prometheus.yml").read_text())
    assert set(prometheus["rule_files"]) <= set(mounted["prometheus"])
    provisioning = ROOT / "infra/grafana/provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards/spark.yaml").read_text())["providers"]
    assert provider["options"]["path"] in mounted["grafana"]
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert urlsplit(source["url"]).hostname == "prometheus"
    assert services["prometheus"]["ports"] == [f"127.0.0.1:9090:{urlsplit(source['url']).port}"]


def test_the_collector_receives_where_the_processes_send_and_writes_where_it_may(document: Compose) -> None:
    collector = yaml.safe_load((ROOT / "infra/otel/collector.yaml").read_text())
    service = document["services"]["otel-collector"]
    port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert service["expose"] == [port]
    assert f"traces:{Path(collector['exporters']['file']['path']).parent}" in service["volumes"]
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= collector[kind].keys()


def test_stopping_takes_the_actors_first_and_the_server_last(document: Compose) -> None:
    """Compose stops a service before what it depends on."""
    services = document["services"]

    def needed(name: str) -> set[str]:
        direct = set(services[name].get("depends_on", ()))
        return direct.union(*(needed(other) for other in direct))

    assert {"learner", "redis"} <= needed("actor")
    assert {"learner", "redis"} <= needed("recycler")
    assert "redis" in needed("learner")
    assert not needed("redis")


@pytest.mark.skipif(
    shutil.which("check-jsonschema") is None, reason="the command is not on PATH; its schema is used above"
)
def test_the_command_of_the_guide_accepts_it() -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
