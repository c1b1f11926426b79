"""The order of the learner's loop that others rely on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from common.settings import Settings
from learner.loop import run
from learner.steering import Helm


class Calls:
    """Notes who is called, in order."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def of(self, name: str) -> Any:
        return lambda *_, **__: self.made.append(name)


@pytest.mark.parametrize("paused", [False, True])
def test_what_a_checkpoint_between_batches_acknowledges_is_archived_before(paused: bool) -> None:
    """Of a server that needs room (the intake asks for a checkpoint), and of a run that is paused."""
    calls, settings = Calls(), Settings()
    helm = Helm(settings)
    if paused:
        helm.steering = SimpleNamespace(mode="paused")  # type: ignore[assignment]
        helm.obey = lambda _version: True  # type: ignore[method-assign]

    def take(_quota: Any, _version: int, relieve: Any, _tend: Any) -> None:
        if not paused:
            relieve()

    used = SimpleNamespace(policy_version=3, use=calls.of("engine.use"))
    intake = SimpleNamespace(helm=helm, take=take, use=calls.of("intake.use"), stopping=lambda: False)
    committer = SimpleNamespace(
        save=calls.of("save"), finish=calls.of("finish"), use=calls.of("committer.use"), save_if_due=calls.of("due")
    )
    archive = SimpleNamespace(write=calls.of("write"), flush=calls.of("flush"))
    publisher = SimpleNamespace(publish=calls.of("publish"), tend=lambda _engine: True)
    run(used, intake, publisher, committer, settings, calls.of("record"), archive)  # type: ignore[arg-type]
    order = [name for name in calls.made if name in ("write", "flush", "save", "finish")]
    assert order == ["write", "flush", "save", "write", "flush", "finish"]
