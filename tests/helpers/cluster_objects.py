"""Kubernetes manifests as the tests look at them: pods, wherever they are described, and who may talk to whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Object = Mapping[str, Any]

COMPONENT: Final = "app.kubernetes.io/component"
NAMESPACE: Final = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """The pods of one workload."""

    kind: str
    name: str
    labels: Mapping[str, str]
    spec: Object
    owner: Object
    """The spec of the workload."""

    @property
    def container(self) -> Object:
        [container] = self.spec["containers"]
        return container

    @property
    def component(self) -> str:
        return self.labels.get(COMPONENT, "")


def named(objects: Iterable[Object], kind: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def pods(objects: Iterable[Object]) -> Iterator[Pods]:
    for found in objects:
        name, spec = found["metadata"]["name"], found.get("spec", {})
        if found["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield _pods(found["kind"], name, spec, spec)
        if found["kind"] == "JobSet":
            for job in spec["replicatedJobs"]:
                yield _pods("JobSet", name, job["template"]["spec"], spec)


def _pods(kind: str, name: str, job: Object, owner: Object) -> Pods:
    template = job["template"]
    labels = template.get("metadata", {}).get("labels", {})
    return Pods(kind=kind, name=name, labels=labels, spec=template["spec"], owner=owner)


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """A label selector; an empty one selects everything."""
    same = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return same and all(_holds(rule, labels) for rule in selector.get("matchExpressions", ()))


def _holds(rule: Object, labels: Mapping[str, str]) -> bool:
    value = labels.get(rule["key"])
    if rule["operator"] == "In":
        return value in rule["values"]
    raise ValueError(f"operator {rule['operator']!r} is not known here; teach it to this function")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One end of a connection: a pod of the run's namespace, of another one, or an address outside."""

    labels: Mapping[str, str]
    namespace: str = ""
    """Empty: the run's."""
    outside: bool = False


def allowed(objects: Iterable[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the NetworkPolicies let a connection pass, at both ends that are in the run's namespace."""
    policies = [found["spec"] for found in objects if found["kind"] == "NetworkPolicy"]
    ends = (("Egress", "egress", "to", source, target), ("Ingress", "ingress", "from", target, source))
    for kind, rules, whom, mine, other in ends:
        if mine.namespace or mine.outside:
            continue  # policies of others are not ours to know
        concerned = [
            spec for spec in policies if kind in spec["policyTypes"] and selects(spec["podSelector"], mine.labels)
        ]
        passes = any(_admits(rule, whom, other, port, protocol) for spec in concerned for rule in spec.get(rules, ()))
        if concerned and not passes:
            return False
    return True


def _admits(rule: Object, whom: str, other: Peer, port: int, protocol: str) -> bool:
    ports = rule.get("ports", [{"port": port, "protocol": protocol}])
    open_port = any(
        entry.get("protocol", "TCP") == protocol and entry["port"] <= port <= entry.get("endPort", entry["port"])
        for entry in ports
    )
    return open_port and any(_is(peer, other) for peer in rule[whom])


def _is(peer: Object, other: Peer) -> bool:
    if "ipBlock" in peer:
        return other.outside
    if "namespaceSelector" in peer:
        in_it = bool(other.namespace) and selects(peer["namespaceSelector"], {NAMESPACE: other.namespace})
        return in_it and selects(peer.get("podSelector", {}), other.labels)
    return not other.outside and not other.namespace and selects(peer["podSelector"], other.labels)
