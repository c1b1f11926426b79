"""What the manifests of one overlay must agree with, beyond their schemas: the service table, each other. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from cluster_objects import Object, Peer, Pods, allowed, named, pods, selects

from cli.services import ROLES, STOP_S, Role
from cli.supervisor import FATAL
from common.keys import ACTORS, Keys
from common.telemetry.names import METRICS
from common.telemetry.sdk import port_of

ONE_SHOT: Final = "bootstrap"
SERVER: Final = "redis"
SERVER_PORT: Final = 6379
OUTSIDE: Final = Peer(labels={}, outside=True)
MONITORING: Final = Peer(labels={"app": "prometheus"}, namespace="monitoring")


def findings(objects: Sequence[Object], secrets: Sequence[Object], run: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that would not work. ``secrets``: of infra/k8s/secrets; ``run``: the run file."""
    found = [sentence for rule in (_selectors, _network, _budgets) for sentence in rule(objects)]
    found += _scaling(objects, secrets, run)
    found += _roles(objects, run)
    for one in pods(objects):
        for rule in (_volumes, _security, _resources, _probes):
            found += [f"{one.name}: {problem}" for problem in rule(one)]
        found += [f"{one.name}: {problem}" for problem in _references(one, objects, secrets)]
    return found


def _roles(objects: Sequence[Object], run: Mapping[str, Any]) -> Iterator[str]:
    """Every role of the service table has pods that run it."""
    by_component = {one.component: one for one in pods(objects)}
    for role in ROLES:
        if role.name not in by_component:
            yield f"no pods of {role.name}"
            continue
        one = by_component[role.name]
        yield from (f"{one.name}: {problem}" for problem in _process(role, one))
        if one.kind == "Job" and set(FATAL) != _codes(one.owner):
            yield f"{one.name}: a restart is tried after other exit codes than `spark up` tries it"
        if one.kind == "JobSet":
            yield from (f"{one.name}: {problem}" for problem in _ranks(one))
    gpus = (
        by_component["actor"].container["resources"]["limits"].get("nvidia.com/gpu", "1")
        if "actor" in by_component
        else 1
    )
    if int(gpus) != run.get("vllm", {}).get("tensor_parallel_size", 1):
        yield f"an actor has {gpus} GPUs and splits its model over another number"


def _process(role: Role, one: Pods) -> Iterator[str]:
    member, asked_for = ("$(POD_NAME)", '"$POD_NAME"') if role.scales else (role.name, role.name)
    words = list(one.container["args"])
    if one.container.get("command") == ["torchrun"]:
        words = words[words.index("spark") + 1 :] if "spark" in words else words
    if words != role.arguments(member, "/config/run.toml"):
        yield f"runs {words}"
    for probe in ("startupProbe", "readinessProbe"):
        asked = " ".join(one.container.get(probe, {}).get("exec", {}).get("command", ()))
        if not asked.endswith(f"spark ready /config/run.toml {asked_for}"):
            yield f"{probe} runs {asked!r}"
    if one.spec.get("terminationGracePeriodSeconds", 30) < STOP_S:
        yield f"terminationGracePeriodSeconds is below the {STOP_S:.0f} s that `spark up` gives"
    environment = {entry["name"]: entry.get("value", "") for entry in one.container["env"]}
    base = int(environment.get("SPARK_TELEMETRY__PROMETHEUS_PORT", 0))
    port = port_of(base, role.name, "actor-5f6d8c9b7-12345" if role.scales else role.name)
    if [entry["containerPort"] for entry in one.container.get("ports", ())] != [port]:
        yield f"its telemetry listens on {port}, which is not its port"
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in one.container["volumeMounts"]}
    if role.keeps and (mounts.get("/runs", True) or mounts.get("/weights", True)):
        yield "cannot write /runs and /weights"
    if not role.keeps and ("/runs" in mounts or not mounts.get("/weights", True)):
        yield "may write what only the learner writes"
    secrets = {volume["secret"]["secretName"] for volume in one.spec["volumes"] if "secret" in volume}
    if secrets != {f"spark-{role.name}"}:
        yield f"has the secrets {sorted(secrets)}"


def _codes(job: Object) -> set[int]:
    rules = job.get("podFailurePolicy", {}).get("rules", ())
    return {code for rule in rules if rule["action"] == "FailJob" for code in rule["onExitCodes"]["values"]}


def _ranks(one: Pods) -> Iterator[str]:
    """As many nodes and ranks as the launcher is told, under the name that JobSet gives to the first pod."""
    [job] = one.owner["replicatedJobs"]
    spec = job["template"]["spec"]
    options = dict(word.lstrip("-").split("=", 1) for word in one.container["args"] if "=" in word)
    if not int(options["nnodes"]) == spec["completions"] == spec["parallelism"]:
        yield f"torchrun expects {options['nnodes']} nodes, and there are {spec['completions']}"
    if options["nproc-per-node"] != one.container["resources"]["limits"]["nvidia.com/gpu"]:
        yield "a node has not as many ranks as GPUs"
    if options["master-addr"] != f"{one.name}-{job['name']}-0-0.{one.name}":
        yield f"rank 0 is not at {options['master-addr']}"


def _volumes(one: Pods) -> Iterator[str]:
    declared = {volume["name"] for volume in one.spec.get("volumes", ())}
    declared |= {claim["metadata"]["name"] for claim in one.owner.get("volumeClaimTemplates", ())}
    mounted = {mount["name"] for mount in one.container.get("volumeMounts", ())}
    yield from (f"mounts {name}, which is no volume" for name in sorted(mounted - declared))
    yield from (f"volume {name} is mounted nowhere" for name in sorted(declared - mounted))


def _references(one: Pods, objects: Sequence[Object], secrets: Sequence[Object]) -> Iterator[str]:
    """ConfigMaps, claims and secrets are there, and what a path names is in them."""
    maps, claims, known = named(objects, "ConfigMap"), named(objects, "PersistentVolumeClaim"), named(secrets, "Secret")
    files: set[str] = set()
    places = {mount["name"]: mount["mountPath"] for mount in one.container.get("volumeMounts", ())}
    for volume in one.spec.get("volumes", ()):
        place = places.get(volume["name"], "")
        if "configMap" in volume:
            name = volume["configMap"]["name"]
            if name not in maps:
                yield f"ConfigMap {name} does not exist"
            files |= {f"{place}/{key}" for key in maps.get(name, {}).get("data", {})}
        if "secret" in volume:
            name = volume["secret"]["secretName"]
            if name not in known:
                yield f"secret {name} does not exist"
            files |= {f"{place}/{key}" for key in known.get(name, {}).get("data", {})}
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and claim not in claims:
            yield f"claim {claim} does not exist"
    said = repr([one.container.get(key) for key in ("args", "command", "env", "startupProbe", "readinessProbe")])
    for path in sorted(set(re.findall(r"/(?:config|run|etc)/[\w./-]*\w", said)) - files):
        yield f"reads {path}, which is in no volume"
    for account in {one.spec.get("serviceAccountName")} - named(objects, "ServiceAccount").keys():
        yield f"service account {account} does not exist"


def _security(one: Pods) -> Iterator[str]:
    pod, container = one.spec.get("securityContext", {}), one.container.get("securityContext", {})
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
        yield "runs as root"
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    if container.get("capabilities") != {"drop": ["ALL"]}:
        yield "has capabilities"
    if not container.get("readOnlyRootFilesystem"):
        yield "may write its root"
    if container.get("allowPrivilegeEscalation", True) or container.get("privileged"):
        yield "may gain privileges"
    if one.spec.get("automountServiceAccountToken", True):
        yield "has a token for the cluster's API"
    if any(one.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the host"


def _resources(one: Pods) -> Iterator[str]:
    resources = one.container.get("resources", {})
    if not {"cpu", "memory"} <= resources.get("requests", {}).keys():
        yield "requests no cpu or no memory"
    if "memory" not in resources.get("limits", {}):
        yield "has no limit of memory"


def _probes(one: Pods) -> Iterator[str]:
    if one.component != ONE_SHOT and not {"startupProbe", "readinessProbe"} <= one.container.keys():
        yield "has no probes"
    if "livenessProbe" in one.container:
        yield "would be started again whenever the server is away"
    asked = repr([one.container.get(key) for key in ("startupProbe", "readinessProbe")])
    if one.component == SERVER and ("PING" in asked.upper() or "tcpSocket" in asked):
        yield "is asked by PING, which says nothing of being ready"


def _selectors(objects: Sequence[Object]) -> Iterator[str]:
    """Every selector finds its own pods."""
    there = list(pods(objects))
    for one in there:
        if one.kind in ("Deployment", "StatefulSet") and not selects(one.owner["selector"], one.labels):
            yield f"{one.kind} {one.name} does not select its own pods"
        for constraint in one.spec.get("topologySpreadConstraints", ()):
            if not selects(constraint["labelSelector"], one.labels):
                yield f"{one.name} is spread among pods that are not its own"
    labels = [one.labels for one in there]
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for name, found in named(objects, kind).items():
            if not any(selects(found["spec"][key], each) for each in labels):
                yield f"{kind} {name} selects nothing"
    for name, service in named(objects, "Service").items():
        found = [one for one in there if selects({"matchLabels": service["spec"]["selector"]}, one.labels)]
        if not found:
            yield f"Service {name} selects nothing"
        ports = {port["name"] for one in found for port in one.container.get("ports", ())}
        for port in service["spec"]["ports"]:
            if found and port["targetPort"] not in ports:
                yield f"Service {name} leads to port {port['targetPort']}, which its pods have not"


def _network(objects: Sequence[Object]) -> Iterator[str]:
    """What must pass does, and nothing else that was thought of."""
    policies = {name: found["spec"] for name, found in named(objects, "NetworkPolicy").items()}
    if {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} not in policies.values():
        yield "nothing denies what no policy allows"
    for name, spec in policies.items():
        for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
            among_themselves = [{"podSelector": spec["podSelector"]}] in (rule.get("from"), rule.get("to"))
            if "ports" not in rule and not among_themselves:
                yield f"NetworkPolicy {name} opens every port"
    peers = {one.component: Peer(labels=one.labels) for one in pods(objects)}
    server = peers.get(SERVER, OUTSIDE)
    names = Peer(labels={"k8s-app": "kube-dns"}, namespace="kube-system")
    for name, peer in peers.items():
        if not allowed(objects, peer, names, 53, "UDP"):
            yield f"{name} cannot ask for names"
        if name != SERVER and not allowed(objects, peer, server, SERVER_PORT):
            yield f"{name} cannot reach the server"
        if name != SERVER and allowed(objects, peer, server, SERVER_PORT + 1):
            yield f"{name} reaches the server on any port"
        if allowed(objects, peer, OUTSIDE, 443):
            yield f"{name} reaches the outside"
        if name != "learner" and any(allowed(objects, peer, peers[other], 9464) for other in ("learner", "actor")):
            yield f"{name} reaches other processes"
    for role in ROLES:
        for one in pods(objects):
            if one.component == role.name and not allowed(
                objects, MONITORING, Peer(labels=one.labels), one.container["ports"][0]["containerPort"]
            ):
                yield f"Prometheus cannot read {role.name}"
    if "redis" in peers and allowed(objects, MONITORING, peers["redis"], SERVER_PORT):
        yield "other namespaces reach the server"


def _budgets(objects: Sequence[Object]) -> Iterator[str]:
    for name, budget in named(objects, "PodDisruptionBudget").items():
        for one in pods(objects):
            if one.kind == "JobSet" and selects(budget["spec"]["selector"], one.labels):
                nodes = one.owner["replicatedJobs"][0]["template"]["spec"]["completions"]
                if budget["spec"].get("minAvailable") != nodes:
                    yield f"PodDisruptionBudget {name} lets one of {nodes} nodes go, and all start again"


def _scaling(objects: Sequence[Object], secrets: Sequence[Object], run: Mapping[str, Any]) -> Iterator[str]:
    """The autoscaler reads what exists and scales what exists."""
    known, keys = {metric.prometheus for metric in METRICS}, Keys(run["run"]["name"])
    for name, found in named(objects, "ScaledObject").items():
        target = found["spec"]["scaleTargetRef"]
        scaled = named(objects, target["kind"]).get(target["name"])
        if scaled is None:
            yield f"ScaledObject {name} scales {target['name']}, which does not exist"
        elif "replicas" in scaled["spec"]:
            yield f"applying {target['name']} again would undo what ScaledObject {name} did"
        for trigger in found["spec"]["triggers"]:
            yield from _trigger(trigger, objects, known, keys)
    authentications = named(objects, "TriggerAuthentication")
    for found in named(objects, "ScaledObject").values():
        for trigger in found["spec"]["triggers"]:
            if (wanted := trigger.get("authenticationRef", {}).get("name")) and wanted not in authentications:
                yield f"TriggerAuthentication {wanted} does not exist"
    for name, found in authentications.items():
        for entry in found["spec"]["secretTargetRef"]:
            if entry["key"] not in named(secrets, "Secret").get(entry["name"], {}).get("data", {}):
                yield f"TriggerAuthentication {name}: secret {entry['name']} has no {entry['key']}"


def _trigger(trigger: Object, objects: Sequence[Object], known: set[str], keys: Keys) -> Iterator[str]:
    told = trigger["metadata"]
    if trigger["type"] == "prometheus":
        for metric in set(re.findall(r"\bspark_\w+(?=\{)", told["query"])) - known:
            yield f"metric {metric} is told by nobody"
        if f'spark_run="{keys.run}"' not in told["query"]:
            yield f"the query is not about run {keys.run}"
        return
    address = urlsplit(f"//{told['address']}")
    name, namespace, _ = str(address.hostname).split(".")
    service = named(objects, "Service").get(name)
    if service is None or service["metadata"]["namespace"] != namespace:
        yield f"no Service is at {told['address']}"
    elif address.port not in {port["port"] for port in service["spec"]["ports"]}:
        yield f"the Service at {told['address']} has another port"
    streams = {stream for stream, groups in keys.groups().items() if groups == (ACTORS,)}
    if told["stream"] not in streams or told["consumerGroup"] != ACTORS:
        yield f"{told['stream']} is no stream of tasks of run {keys.run}"
    if not allowed(objects, Peer(labels={}, namespace="keda"), Peer(labels=_labels_of_server(objects)), SERVER_PORT):
        yield "KEDA cannot reach the server"


def _labels_of_server(objects: Sequence[Object]) -> Mapping[str, str]:
    return next((one.labels for one in pods(objects) if one.component == SERVER), {})
