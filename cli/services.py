"""The service table: which processes a run has. `spark up` starts them; compose and manifests list the same.

What those files must agree with is checked against this table by tests/unit/infra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.settings import Settings

STOP_S: Final = 20.0
"""What a process gets between SIGTERM and SIGKILL, s: an actor hands back, a learner saves a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What holds for every process of one kind, wherever it runs. Its user at the server has the same name."""

    name: str
    stops: int
    """Place in the order of stopping; the server stops last."""
    scales: bool = False
    """Several at once, each with a name of its own."""
    keeps: bool = False
    """Writes the run directory, and the weights; the others only read weights."""

    def arguments(self, member: str, config: str) -> list[str]:
        """Arguments of the ``spark`` command that runs ``member``."""
        return [self.name, config, *(["--name", member] if self.scales else [])]


ROLES: Final = (
    Role(name="learner", stops=3, keeps=True),
    Role(name="recycler", stops=2),
    Role(name="actor", stops=1, scales=True),
)
"""In the order of starting: the learner first, since it loads the stream functions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The processes of one role in one run."""

    kind: Role
    replicas: int

    @property
    def role(self) -> str:
        return self.kind.name

    @property
    def stops(self) -> int:
        return self.kind.stops

    def members(self) -> tuple[str, ...]:
        return tuple(f"{self.role}-{index}" for index in range(self.replicas)) if self.kind.scales else (self.role,)

    def arguments(self, member: str, config: str) -> list[str]:
        """Arguments of the ``spark`` command that runs ``member``."""
        return self.kind.arguments(member, config)


def services(settings: Settings) -> tuple[Service, ...]:
    """In the order of starting. Without judging there is no recycler."""
    wanted = {"learner": 1, "recycler": int(settings.learner.judge_share > 0), "actor": settings.actor.count}
    return tuple(Service(kind=role, replicas=wanted[role.name]) for role in ROLES if wanted[role.name])
