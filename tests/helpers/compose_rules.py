"""What docker-compose.yml must agree with beyond its schema: the service table, files of the repository, itself."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cli.services import ROLES, STOP_S, Role
from common.telemetry.sdk import port_of

SECRETS: Final = "/run/secrets/"
ONE_SHOT: Final = ("bootstrap",)
UNASKED: Final = ("otel-collector",)
"""Services whose image holds nothing that could ask them how they are."""
GPU: Final = "-gpu"
"""Ending of the services of a role in the profile ``gpu``."""

Document = Mapping[str, Any]


def filled_in(text: str, variables: Mapping[str, str]) -> str:
    """``${NAME:-default}`` as compose reads it, and ``$$`` as the shell in the container sees it."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], text)
    return text.replace("$$", "$")


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()
    return float(number) * {"s": 1, "m": 60}[unit]


def findings(document: Document, root: Path, variables: Mapping[str, str]) -> list[str]:
    """One sentence for each thing that would not work. Empty when all is well."""
    rules = (_dependencies, _profiles, _volumes, _secrets, _networks, _hardening, _health, _images, _urls)
    found = [sentence for rule in rules for sentence in rule(document)]
    found += _sources(document, root, variables)
    for role in ROLES:
        services = [name for name in (role.name, role.name + GPU) if name in document["services"]]
        found += [f"no service for {role.name}"] * (not services)
        for name in services:
            found += [f"{name}: {problem}" for problem in _process(role, document["services"][name], variables)]
    return found


def _process(role: Role, service: Document, variables: Mapping[str, str]) -> Iterator[str]:
    """A process of the service table."""
    config = filled_in("/config/${RUN_FILE:-run.toml}", variables)
    member = "actor-$(hostname)" if role.scales else role.name
    if _spoken(service, variables) != ["spark", *role.arguments(member, config)]:
        yield f"runs {_spoken(service, variables)}, not {role.arguments(member, config)}"
    if _check(service, variables) != ["spark", "ready", config, member]:
        yield f"its health check runs {_check(service, variables)}, not that of {member}"
    if seconds(service.get("stop_grace_period", "10s")) < STOP_S:
        yield f"stop_grace_period is below the {STOP_S:.0f} s that `spark up` gives"
    if not isinstance(service.get("scale", 1), int):  # the schema takes any text, for the sake of variables
        yield f"scale is {service['scale']!r}, not a number"
    if "container_name" in service:
        yield "container_name forbids --scale"
    environment = service.get("environment", {})
    base = int(environment.get("SPARK_TELEMETRY__PROMETHEUS_PORT", 0))
    if service.get("expose") != [str(port_of(base, role.name, "actor-3f2a9b1c4d5e" if role.scales else role.name))]:
        yield f"exposes {service.get('expose')}, which is not where its telemetry listens"
    mounted = {mount.split(":")[1]: mount.split(":")[2:] for mount in service.get("volumes", ())}
    if role.keeps and not (mounted.get("/runs") == [] and mounted.get("/weights") == []):
        yield "cannot write /runs and /weights"
    if not role.keeps and ("/runs" in mounted or mounted.get("/weights") == []):
        yield "may write what only the learner writes"
    if {secret["source"] for secret in service.get("secrets", ())} != {f"{role.name}.url"}:
        yield f"has other secrets than {role.name}.url"
    if role.name != "recycler" and "shm_size" not in service:
        yield "has no shm_size"


def _spoken(service: Document, variables: Mapping[str, str]) -> list[str]:
    """The command line as the container runs it; the image's entry point is ``spark``."""
    words = [filled_in(word, variables) for word in service.get("command", ())]
    if service.get("entrypoint") == ["/bin/sh", "-c"]:
        return [word for word in shlex.split(words[0]) if word != "exec"]
    return ["spark", *words]


def _check(service: Document, variables: Mapping[str, str]) -> list[str]:
    kind, *words = [filled_in(word, variables) for word in service.get("healthcheck", {}).get("test", ["NONE"])]
    return shlex.split(words[0]) if kind == "CMD-SHELL" else words


def _dependencies(document: Document) -> Iterator[str]:
    services = document["services"]
    for name, service in services.items():
        for other, condition in service.get("depends_on", {}).items():
            if other not in services:
                yield f"{name} depends on {other}, which is no service"
            elif condition["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                yield f"{name} waits for the health of {other}, which has no check"
            elif condition["condition"] == "service_completed_successfully" and other not in ONE_SHOT:
                yield f"{name} waits for the end of {other}, which has none"


def _profiles(document: Document) -> Iterator[str]:
    """In every profile what a service needs is there."""
    services = document["services"]
    everywhere = {profile for service in services.values() for profile in service.get("profiles", ())}
    for profile in sorted(everywhere):
        there = {name for name, service in services.items() if profile in service.get("profiles", [profile])}
        for role in ROLES:
            if len({role.name, role.name + GPU} & there) != 1:
                yield f"profile {profile} has not one service of {role.name}"
        for name in there:
            for other, condition in services[name].get("depends_on", {}).items():
                if other not in there and condition.get("required", True):
                    yield f"{name} depends on {other}, which profile {profile} leaves out"


def _volumes(document: Document) -> Iterator[str]:
    used = {mount.split(":")[0] for service in document["services"].values() for mount in service.get("volumes", ())}
    named = {source for source in used if not source.startswith((".", "/", "$"))}
    yield from (f"volume {name} is not declared" for name in sorted(named - document["volumes"].keys()))
    yield from (f"volume {name} is mounted nowhere" for name in sorted(document["volumes"].keys() - named))


def _sources(document: Document, root: Path, variables: Mapping[str, str]) -> Iterator[str]:
    for name, service in document["services"].items():
        for mount in service.get("volumes", ()):
            source = filled_in(mount, variables).split(":")[0]
            if source.startswith(".") and not (root / source).exists():
                yield f"{name} mounts {source}, which is not in the repository"
        if (build := service.get("build")) and not (root / build["dockerfile"]).is_file():
            yield f"{name} is built from {build['dockerfile']}, which is not in the repository"


def _secrets(document: Document) -> Iterator[str]:
    wanted = set()
    for name, service in document["services"].items():
        targets = {SECRETS + secret["target"] for secret in service.get("secrets", ())}
        wanted |= {secret["source"] for secret in service.get("secrets", ())}
        text = repr([service.get("environment"), service.get("healthcheck"), service.get("command")])
        for path in sorted(set(re.findall(r"/run/secrets/[\w.]+", text)) - targets):
            yield f"{name} reads {path}, which is none of its secrets"
    yield from (f"secret {name} is not declared" for name in sorted(wanted - document["secrets"].keys()))
    yield from (f"secret {name} is given to nobody" for name in sorted(document["secrets"].keys() - wanted))


def _networks(document: Document) -> Iterator[str]:
    for name, service in document["services"].items():
        for network in service.get("networks", ()):
            if network not in document["networks"]:
                yield f"{name} is in network {network}, which is not declared"
        for port in service.get("ports", ()):
            if not str(port).startswith("127.0.0.1:"):
                yield f"{name} publishes {port} to the whole network"


def _hardening(document: Document) -> Iterator[str]:
    for name, service in document["services"].items():
        if not service.get("read_only"):
            yield f"{name} may write its root"
        if service.get("cap_drop") != ["ALL"] or "cap_add" in service or service.get("privileged"):
            yield f"{name} has capabilities"
        if "no-new-privileges:true" not in service.get("security_opt", ()):
            yield f"{name} may gain privileges"


def _health(document: Document) -> Iterator[str]:
    for name, service in document["services"].items():
        if "healthcheck" not in service and name not in (*ONE_SHOT, *UNASKED):
            yield f"{name} has no health check"
        if "PING" in repr(service.get("healthcheck")).upper():
            yield f"{name} is asked by PING, which says nothing of being ready"


def _images(document: Document) -> Iterator[str]:
    for name, service in document["services"].items():
        _, _, tag = service["image"].partition(":")
        if not tag or tag == "latest":
            yield f"{name} takes any version of {service['image']}"


def _urls(document: Document) -> Iterator[str]:
    """Every URL of an environment names a service, and a port on which it is to be had."""
    services = document["services"]
    for name, service in services.items():
        text = repr(service.get("environment", {}))
        for host, port in re.findall(r"https?://([\w.-]+):(\d+)", text):
            if port not in services.get(host, {}).get("expose", ()):
                yield f"{name} talks to {host}:{port}, where no service is"
