"""Shapes of the custom resources that the manifests use, as far as they use them: for KEDA 2.17 and JobSet 0.8.

Written from their documentation, not taken from their CRDs: stricter (no field that is not used here), and no proof
that a cluster takes them. The job inside of a JobSet is checked against Kubernetes' own schema by the test.
"""

from __future__ import annotations

from typing import Any, Final

Shape = dict[str, Any]

TEXT: Final[Shape] = {"type": "string", "minLength": 1}
COUNT: Final[Shape] = {"type": "integer", "minimum": 0}
TEXTS: Final[Shape] = {"type": "object", "additionalProperties": TEXT}  # numbers must be quoted


def _object(required: str, optional: Shape | None = None, **fields: Shape) -> Shape:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": {**fields, **(optional or {})},
    }


def _list(items: Shape) -> Shape:
    return {"type": "array", "minItems": 1, "items": items}


def _resource(version: str, kind: str, spec: Shape) -> Shape:
    metadata = _object("name namespace", {"labels": TEXTS, "annotations": TEXTS}, name=TEXT, namespace=TEXT)
    return _object(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


_POLICY: Final = _object(
    "type value periodSeconds", type={"enum": ["Pods", "Percent"]}, value=COUNT, periodSeconds=COUNT
)
_RULES: Final = _object(
    "policies",
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    selectPolicy={"enum": ["Max", "Min", "Disabled"]},
    policies=_list(_POLICY),
)
_BEHAVIOR: Final = _object("", scaleUp=_RULES, scaleDown=_RULES)
_TRIGGERS: Final[Shape] = {
    "prometheus": {"required": ["serverAddress", "query", "threshold"]},
    "redis-streams": {"required": ["address", "stream", "consumerGroup", "lagCount"]},
}
_TRIGGER: Final[Shape] = {
    **_object(
        "type metadata",
        type={"enum": list(_TRIGGERS)},
        metricType={"enum": ["Value", "AverageValue"]},
        metadata=TEXTS,
        authenticationRef=_object("name", name=TEXT),
    ),
    "allOf": [
        {"if": {"properties": {"type": {"const": name}}}, "then": {"properties": {"metadata": keys}}}
        for name, keys in _TRIGGERS.items()
    ],
}
SCALED_OBJECT: Final = _resource(
    "keda.sh/v1alpha1",
    "ScaledObject",
    _object(
        "scaleTargetRef minReplicaCount maxReplicaCount triggers",
        scaleTargetRef=_object("apiVersion kind name", apiVersion=TEXT, kind=TEXT, name=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        cooldownPeriod=COUNT,
        fallback=_object("failureThreshold replicas", failureThreshold=COUNT, replicas=COUNT),
        advanced=_object("", horizontalPodAutoscalerConfig=_object("", behavior=_BEHAVIOR)),
        triggers=_list(_TRIGGER),
    ),
)
TRIGGER_AUTHENTICATION: Final = _resource(
    "keda.sh/v1alpha1",
    "TriggerAuthentication",
    _object(
        "secretTargetRef", secretTargetRef=_list(_object("parameter name key", parameter=TEXT, name=TEXT, key=TEXT))
    ),
)
JOB_SET: Final = _resource(
    "jobset.x-k8s.io/v1alpha2",
    "JobSet",
    _object(
        "replicatedJobs",
        network=_object("", enableDNSHostnames={"type": "boolean"}, subdomain=TEXT),
        failurePolicy=_object("", maxRestarts=COUNT),
        replicatedJobs=_list(
            _object(
                "name replicas template", name=TEXT, replicas=COUNT, template=_object("spec", spec={"type": "object"})
            )
        ),
    ),
)
SHAPES: Final = {"ScaledObject": SCALED_OBJECT, "TriggerAuthentication": TRIGGER_AUTHENTICATION, "JobSet": JOB_SET}
