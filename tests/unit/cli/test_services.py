"""The service table that `spark up` starts."""

from __future__ import annotations

from cli.services import services
from common.settings import Actor, Learner, Settings


def test_all_processes_and_their_arguments() -> None:
    table = services(Settings(actor=Actor(count=3)))
    members = {member: service for service in table for member in service.members()}
    assert list(members) == ["learner", "recycler", "actor-0", "actor-1", "actor-2"]
    assert members["actor-1"].arguments("actor-1", "c.toml") == ["actor", "c.toml", "--name", "actor-1"]
    assert members["learner"].arguments("learner", "c.toml") == ["learner", "c.toml"]


def test_one_actor_is_numbered_too() -> None:
    table = services(Settings(actor=Actor(count=1)))
    assert [member for service in table for member in service.members()][-1] == "actor-0"


def test_stopping_order_is_actors_recycler_learner() -> None:
    assert [s.role for s in sorted(services(Settings()), key=lambda s: s.stops)] == ["actor", "recycler", "learner"]


def test_no_recycler_when_the_judge_is_off() -> None:
    table = services(Settings(learner=Learner(judge_share=0.0)))
    assert [service.role for service in table] == ["learner", "actor"]
