"""infra/k8s: every overlay is built, checked against schemas and for what these cannot see. None ran on a cluster."""

from __future__ import annotations

import copy
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from cluster_objects import named
from cluster_rules import findings
from cluster_shapes import SHAPES
from jsonschema import Draft202012Validator

from common.settings import Settings
from common.settings_sources import load_settings

ROOT = Path(__file__).parents[3]
K8S = ROOT / "infra" / "k8s"
KUBERNETES = "1.37"
OVERLAYS = ("dev", "gpu", "spot", "dev-streams")
"""The last one is made here: dev with the simple autoscaler."""

Objects = list[dict[str, Any]]

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which builds the overlays, comes from no Python package"
)


def built(folder: Path) -> Objects:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of infra/ with secrets, and with an overlay that uses the other autoscaler."""
    root = tmp_path_factory.mktemp("cluster")
    shutil.copytree(ROOT / "infra", root / "infra", ignore=shutil.ignore_patterns("made"))
    subprocess.run(["sh", str(root / "infra/k8s/secrets/prepare.sh")], check=True, capture_output=True)
    streams = root / "infra/k8s/overlays/dev-streams"
    streams.mkdir()
    extra = {"resources": ["../dev"], "components": ["../../components/keda-redis-streams"], "namespace": "spark"}
    (streams / "kustomization.yaml").write_text(yaml.safe_dump(extra))
    return root / "infra" / "k8s"


@pytest.fixture(scope="module")
def overlays(tree: Path) -> dict[str, Objects]:
    return {name: built(tree / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(scope="module")
def secrets(tree: Path) -> Objects:
    return built(tree / "secrets")


def run_of(objects: Objects) -> dict[str, Any]:
    """The run file, as it is in the cluster."""
    [text] = [found["data"]["run.toml"] for name, found in named(objects, "ConfigMap").items() if name[:4] == "run-"]
    return tomllib.loads(text)


def wrong_shapes(found: dict[str, Any]) -> Iterator[str]:
    """Against the schema of Kubernetes, or, of a custom resource, against ours."""
    if (shape := SHAPES.get(found["kind"])) is not None:
        yield from (str(error) for error in Draft202012Validator(shape).iter_errors(found))
        for job in found["spec"].get("replicatedJobs", ()):
            yield from wrong_shapes(
                {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **job["template"]}
            )
        return
    try:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield str(error)


def test_every_object_has_the_shape_of_its_kind(overlays: dict[str, Objects]) -> None:
    """Each once: what two overlays share is the same object."""
    different = {repr(found): found for objects in overlays.values() for found in objects}
    assert [problem for found in different.values() for problem in wrong_shapes(found)] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_everything_of_an_overlay_fits_together(overlays: dict[str, Objects], secrets: Objects, name: str) -> None:
    assert findings(overlays[name], secrets, run_of(overlays[name])) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_everything_is_in_one_namespace_that_admits_only_restricted_pods(
    overlays: dict[str, Objects], secrets: Objects, name: str
) -> None:
    [namespace] = named(overlays[name], "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [found for found in (*overlays[name], *secrets) if found["kind"] != "Namespace"]
    assert {found["metadata"]["namespace"] for found in others} == {namespace["metadata"]["name"]}


# -- mistakes ----------------------------------------------------------------------------------------------------

Finder = Callable[[str, str], dict[str, Any]]


def finder(objects: Objects) -> Finder:
    """The spec of an object by kind and name; of a Deployment, StatefulSet or Job with ``pod:`` its pod's."""

    def find(kind: str, name: str) -> dict[str, Any]:
        spec: dict[str, Any] = named(objects, kind.removeprefix("pod:"))[name]["spec"]
        if kind == "pod:JobSet":
            spec = spec["replicatedJobs"][0]["template"]["spec"]
        return spec["template"]["spec"] if kind.startswith("pod:") else spec

    return find


SHAPES_SPOILT: list[tuple[str, str, Callable[[Finder], object], str]] = [
    ("typo in a key", "dev", lambda f: f("pod:Deployment", "actor").update(terminationGraceSeconds=3), "terminationGr"),
    ("wrong type", "dev", lambda f: f("Deployment", "actor").update(replicas="two"), "replicas"),
    ("typo in a custom resource", "gpu", lambda f: f("ScaledObject", "actor").update(maxReplicas=3), "maxReplicas"),
    (
        "number for text",
        "gpu",
        lambda f: f("ScaledObject", "actor")["triggers"][0]["metadata"].update(threshold=1),
        "1 is",
    ),
    (
        "trigger without a query",
        "gpu",
        lambda f: f("ScaledObject", "actor")["triggers"][0]["metadata"].pop("query"),
        "query",
    ),
    ("typo in a JobSet", "gpu", lambda f: f("JobSet", "learner").update(failurepolicy={}), "failurepolicy"),
    ("typo in its job", "gpu", lambda f: f("pod:JobSet", "learner").update(restartpolicy="Never"), "restartpolicy"),
    (
        "no key",
        "dev-streams",
        lambda f: f("TriggerAuthentication", "redis-observer")["secretTargetRef"][0].pop("key"),
        "key",
    ),
]


@pytest.mark.parametrize(
    ("name", "mutate", "said"), [row[1:] for row in SHAPES_SPOILT], ids=[r[0] for r in SHAPES_SPOILT]
)
def test_a_spoilt_shape_is_caught(
    overlays: dict[str, Objects], name: str, mutate: Callable[[Finder], object], said: str
) -> None:
    objects = copy.deepcopy(overlays[name])
    mutate(finder(objects))
    [spoilt] = [found for found, was in zip(objects, overlays[name], strict=True) if found != was]
    assert any(said in problem for problem in wrong_shapes(spoilt))


def container(find: Finder, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = find(f"pod:{kind}", name)["containers"][0]
    return found


MISTAKES: list[tuple[str, str, Callable[[Finder], object], str]] = [
    (
        "selector mismatch",
        "dev",
        lambda f: f("Deployment", "actor")["selector"]["matchLabels"].update({"app.kubernetes.io/component": "actors"}),
        "Deployment actor does not select its own pods",
    ),
    (
        "budget of nobody",
        "dev",
        lambda f: f("PodDisruptionBudget", "actor")["selector"].update(matchLabels={"app": "actor"}),
        "PodDisruptionBudget actor selects nothing",
    ),
    (
        "spread among others",
        "dev",
        lambda f: f("pod:Deployment", "actor")["topologySpreadConstraints"][0].update(
            labelSelector={"matchLabels": {"a": "b"}}
        ),
        "spread among pods",
    ),
    (
        "service of nobody",
        "dev",
        lambda f: f("Service", "redis").update(selector={"app": "db"}),
        "Service redis selects",
    ),
    (
        "service port drift",
        "dev",
        lambda f: f("Service", "redis")["ports"][0].update(targetPort="db"),
        "leads to port db",
    ),
    (
        "metrics port drift",
        "dev",
        lambda f: container(f, "Deployment", "recycler")["ports"][0].update(containerPort=9464),
        "recycler: its telemetry listens on 9465",
    ),
    (
        "missing secret",
        "dev",
        lambda f: f("pod:Job", "learner")["volumes"][1]["secret"].update(secretName="x"),
        "secret x does",
    ),
    (
        "another role's secret",
        "dev",
        lambda f: f("pod:Deployment", "actor")["volumes"][1]["secret"].update(secretName="spark-learner"),
        "actor: has the secrets ['spark-learner']",
    ),
    (
        "missing key of a secret",
        "dev",
        lambda f: container(f, "Job", "learner")["env"][3].update(value="/run/secrets/url"),
        "reads /run/secrets/url",
    ),
    (
        "missing map",
        "dev",
        lambda f: f("pod:Job", "learner")["volumes"][0]["configMap"].update(name="r"),
        "ConfigMap r does",
    ),
    (
        "hash lost in a JobSet",
        "gpu",
        lambda f: f("pod:JobSet", "learner")["volumes"][0]["configMap"].update(name="run"),
        "ConfigMap run does not exist",
    ),
    (
        "missing claim",
        "gpu",
        lambda f: f("pod:JobSet", "learner")["volumes"][2]["persistentVolumeClaim"].update(claimName="c"),
        "claim c does",
    ),
    (
        "mount of nothing",
        "dev",
        lambda f: container(f, "Job", "learner")["volumeMounts"][2].update(name="run"),
        "mounts run",
    ),
    (
        "writable weights",
        "dev",
        lambda f: container(f, "Deployment", "actor")["volumeMounts"][2].pop("readOnly"),
        "only the",
    ),
    (
        "read-only runs",
        "dev",
        lambda f: container(f, "Job", "learner")["volumeMounts"][2].update(readOnly=True),
        "cannot write",
    ),
    (
        "another command",
        "dev",
        lambda f: container(f, "Deployment", "recycler").update(args=["recycle"]),
        "recycler: runs",
    ),
    (
        "one name for all",
        "dev",
        lambda f: container(f, "Deployment", "actor")["args"].__setitem__(3, "a"),
        "actor: runs",
    ),
    (
        "health of another",
        "dev",
        lambda f: container(f, "Deployment", "recycler")["readinessProbe"].update(exec={"command": ["true"]}),
        "readinessProbe runs",
    ),
    ("no probes", "dev", lambda f: container(f, "Job", "learner").pop("startupProbe"), "learner: has no probes"),
    (
        "liveness",
        "dev",
        lambda f: container(f, "Job", "learner").update(livenessProbe={}),
        "whenever the server is away",
    ),
    (
        "bare PING",
        "dev",
        lambda f: container(f, "StatefulSet", "redis")["readinessProbe"].update(
            exec={"command": ["valkey-cli", "ping"]}
        ),
        "asked by PING",
    ),
    (
        "short grace",
        "spot",
        lambda f: f("pod:Deployment", "actor").update(terminationGracePeriodSeconds=10),
        "below the 20 s",
    ),
    (
        "exit codes",
        "dev",
        lambda f: f("Job", "learner")["podFailurePolicy"]["rules"][0]["onExitCodes"].update(values=[1]),
        "other exit codes",
    ),
    (
        "root",
        "dev",
        lambda f: f("pod:StatefulSet", "redis")["securityContext"].update(runAsUser=0),
        "redis: runs as root",
    ),
    ("no seccomp", "dev", lambda f: f("pod:Job", "learner")["securityContext"].pop("seccompProfile"), "no seccomp"),
    (
        "capabilities",
        "gpu",
        lambda f: container(f, "JobSet", "learner")["securityContext"].pop("capabilities"),
        "has capab",
    ),
    (
        "writable root",
        "dev",
        lambda f: container(f, "Deployment", "actor")["securityContext"].update(readOnlyRootFilesystem=False),
        "may write its root",
    ),
    (
        "token",
        "dev",
        lambda f: f("pod:Deployment", "actor").pop("automountServiceAccountToken"),
        "token for the cluster",
    ),
    (
        "no requests",
        "dev",
        lambda f: container(f, "Deployment", "actor").update(resources={"limits": {}}),
        "requests no cpu",
    ),
    (
        "no way to the server",
        "dev",
        lambda f: f("NetworkPolicy", "to-redis").update(egress=[]),
        "actor cannot reach the ser",
    ),
    ("no way in", "dev", lambda f: f("NetworkPolicy", "redis").update(ingress=[]), "cannot reach the server"),
    (
        "nobody denied",
        "dev",
        lambda f: f("NetworkPolicy", "default-deny").update(policyTypes=["Ingress"]),
        "nothing denies",
    ),
    (
        "all ports",
        "dev",
        lambda f: f("NetworkPolicy", "to-redis")["egress"][0].pop("ports"),
        "to-redis opens every port",
    ),
    ("no names", "dev", lambda f: f("NetworkPolicy", "names").update(egress=[]), "cannot ask for names"),
    (
        "Prometheus shut out",
        "dev",
        lambda f: f("NetworkPolicy", "metrics")["ingress"][0]["ports"][0].update(endPort=9465),
        "Prometheus cannot read actor",
    ),
    (
        "unknown metric",
        "gpu",
        lambda f: f("ScaledObject", "actor")["triggers"][0]["metadata"].update(
            query='spark_waiting{spark_run="large"}'
        ),
        "metric spark_waiting is told by nobody",
    ),
    (
        "metric of another run",
        "gpu",
        lambda f: f("ScaledObject", "actor")["triggers"][0]["metadata"].update(query="up"),
        "not about run large",
    ),
    (
        "scales nothing",
        "gpu",
        lambda f: f("ScaledObject", "actor")["scaleTargetRef"].update(name="actors"),
        "which does not",
    ),
    ("fixed number", "gpu", lambda f: f("Deployment", "actor").update(replicas=2), "would undo"),
    (
        "node count",
        "gpu",
        lambda f: container(f, "JobSet", "learner")["args"].__setitem__(0, "--nnodes=4"),
        "expects 4 nodes",
    ),
    (
        "rank 0 elsewhere",
        "gpu",
        lambda f: container(f, "JobSet", "learner")["args"].__setitem__(3, "--master-addr=learner-0"),
        "rank 0 is not at learner-0",
    ),
    (
        "budget of one node",
        "gpu",
        lambda f: f("PodDisruptionBudget", "learner").update(minAvailable=1),
        "all start again",
    ),
    (
        "server of another name",
        "dev-streams",
        lambda f: f("ScaledObject", "actor")["triggers"][0]["metadata"].update(address="db.spark.svc:6379"),
        "no Service is at db.spark.svc:6379",
    ),
    (
        "stream of another run",
        "dev-streams",
        lambda f: f("ScaledObject", "actor")["triggers"][1]["metadata"].update(stream="spark:{x}:tasks:judge"),
        "no stream of tasks of run demo",
    ),
    (
        "key of a secret",
        "dev-streams",
        lambda f: f("TriggerAuthentication", "redis-observer")["secretTargetRef"][0].update(key="user"),
        "secret spark-observer has no user",
    ),
    (
        "KEDA shut out",
        "dev-streams",
        lambda f: f("NetworkPolicy", "redis-from-keda").update(ingress=[]),
        "KEDA cannot reach",
    ),
]


@pytest.mark.parametrize(("name", "mutate", "said"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_caught(
    overlays: dict[str, Objects], secrets: Objects, name: str, mutate: Callable[[Finder], object], said: str
) -> None:
    objects = copy.deepcopy(overlays[name])
    mutate(finder(objects))
    assert [sentence for sentence in findings(objects, secrets, run_of(objects)) if said in sentence]


# -- run files, secrets, certificates ----------------------------------------------------------------------------


def test_the_demo_of_the_cluster_is_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for where its files are."""
    here = load_settings(K8S / "overlays/dev/run.toml").model_dump()
    there = load_settings(ROOT / "examples/arithmetic/run.toml").model_dump()
    place = "/app/examples/arithmetic"
    assert here["model"].pop("path") == f"{place}/base"
    assert here["templates"].pop("path") == f"{place}/templates.toml"
    assert Path(place) in here["run"].pop("python_path")
    for table, key in (("model", "path"), ("templates", "path"), ("run", "python_path")):
        there[table].pop(key)
    assert here == there


def test_the_run_file_for_gpus_is_one(overlays: dict[str, Objects], tmp_path: Path) -> None:
    settings: Settings = load_settings(K8S / "overlays/gpu/run.toml")
    assert settings.learner.engine == "deepspeed"
    assert settings.actor.engine == "vllm"
    mounts = finder(overlays["gpu"])("pod:Deployment", "actor")["containers"][0]["volumeMounts"]
    assert any(Path(mount["mountPath"]) in Path(settings.model.path).parents for mount in mounts)


def test_the_secrets_name_the_server_as_service_and_certificate_do(tree: Path, overlays: dict[str, Objects]) -> None:
    [(name, service)] = named(overlays["dev"], "Service").items()
    for role in ("admin", "learner", "recycler", "actor", "observer"):
        url = urlsplit((tree / f"secrets/made/{role}.url").read_text().strip())
        assert (url.scheme, url.username) == ("rediss", role)
        assert url.hostname == f"{name}.{service['metadata']['namespace']}.svc"
        assert url.port == service["spec"]["ports"][0]["port"]
    made = tree / "secrets" / "made"
    checks = ["verify", "-CAfile", str(made / "ca.crt"), "-verify_hostname", str(url.hostname), str(made / "tls.crt")]
    done = subprocess.run(["openssl", *checks], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (made / "ca.key").exists()
    assert {path.stat().st_mode & 0o077 for path in made.iterdir()} == {0}


def test_a_second_run_of_the_script_locks_nobody_out(tree: Path) -> None:
    made = tree / "secrets" / "made"
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    subprocess.run(["sh", str(tree / "secrets/prepare.sh")], check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_the_processes_find_what_the_manifests_give_them(
    tree: Path, overlays: dict[str, Objects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of the learner's pod, with its mounts here, is what `spark learner` can start from."""
    pod = finder(overlays["dev"])("pod:Job", "learner")["containers"][0]
    for entry in pod["env"]:
        value = str(entry["value"]).replace("/run/secrets/redis.url", str(tree / "secrets/made/learner.url"))
        monkeypatch.setenv(entry["name"], value.replace("/run/secrets/ca.crt", str(tree / "secrets/made/ca.crt")))
    settings = load_settings(K8S / "overlays/dev/run.toml")
    assert settings.redis.url.get_secret_value().startswith("rediss://learner:")
    assert "ssl_ca_certs" in settings.redis.url.get_secret_value()
    assert settings.run.log_to == "stderr"
    assert str(settings.weights_dir) == "/weights"
