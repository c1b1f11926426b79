"""The service table: which processes a run has. `spark up` starts them; compose and manifests list the same."""

from __future__ import annotations

from dataclasses import dataclass

from common.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One kind of process. ``stops`` is its place in the order of stopping; the server stops last."""

    role: str
    replicas: int
    stops: int

    def members(self) -> tuple[str, ...]:
        return (self.role,) if self.replicas == 1 and self.role != "actor" else tuple(self._numbered())

    def _numbered(self) -> list[str]:
        return [f"{self.role}-{index}" for index in range(self.replicas)]

    def arguments(self, member: str, config: str) -> list[str]:
        """Arguments of the ``spark`` command that runs ``member``."""
        return [self.role, config, *(["--name", member] if self.role == "actor" else [])]


def services(settings: Settings) -> tuple[Service, ...]:
    """In the order of starting: the learner first, since it loads the stream functions."""
    table = (
        Service(role="learner", replicas=1, stops=3),
        Service(role="recycler", replicas=1, stops=2),
        Service(role="actor", replicas=settings.actor.count, stops=1),
    )
    judge_off = settings.learner.judge_share == 0
    return tuple(service for service in table if not (judge_off and service.role == "recycler"))
