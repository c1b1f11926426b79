"""Weights that take long to fetch: tokens flow meanwhile, and what was begun is used."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.fetching import Fetched, Fetching
from actors.policy import FETCH_WAIT_S, RETRY_S, PolicyFollower
from common.codec import encode
from common.errors import WeightsError
from common.messages import WeightFile, WeightManifest

LONG_S = 60.0


def manifest(version: int, epoch: int = 1, uri: str = "file:///shared") -> WeightManifest:
    file = WeightFile(name="m", sha256="0" * 64, size=1)
    return WeightManifest(epoch=epoch, version=version, parent=version - 1, uri=uri, files=(file,))


class Source:
    """A source whose fetches end when the test says so, with what it says."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.outcomes: queue.Queue[Exception | None] = queue.Queue()

    def at_hand(self, wanted: WeightManifest) -> bool:
        return not wanted.uri.startswith("file://")

    def fetch(self, wanted: WeightManifest) -> list[Path]:
        self.begun.append(wanted.version)
        if not self.at_hand(wanted) and (error := self.outcomes.get(timeout=LONG_S)):
            raise error
        return [Path(f"/files/{wanted.version}")]


@pytest.fixture
def source() -> Iterator[Source]:
    found = Source()
    yield found
    found.outcomes.put(None)  # no thread outlives its test


def got(version: int) -> Fetched:
    return Fetched(manifest=manifest(version), files=[Path(f"/files/{version}")])


def test_what_lies_at_hand_is_there_at_once(source: Source) -> None:
    there = manifest(3, uri="/shared")
    assert Fetching(source).get(there, wait_s=0.0) == Fetched(manifest=there, files=[Path("/files/3")])


def test_what_lies_at_hand_does_not_wait_for_a_copy_that_is_being_made(source: Source) -> None:
    fetching = Fetching(source)
    assert fetching.get(manifest(3), wait_s=0.0) is None
    there = manifest(4, uri="/shared")
    assert fetching.get(there, wait_s=0.0) == Fetched(manifest=there, files=[Path("/files/4")])


def test_nothing_waits_for_a_copy_and_a_newer_version_does_not_break_it_off(source: Source) -> None:
    fetching = Fetching(source)
    for wanted in (3, 3, 4, 5):
        assert fetching.get(manifest(wanted), wait_s=0.0) is None
    source.outcomes.put(None)
    assert fetching.get(manifest(5), wait_s=LONG_S) == got(3)
    source.outcomes.put(None)
    assert fetching.get(manifest(5), wait_s=LONG_S) == got(5)
    assert source.begun == [3, 5]


def test_a_failure_is_raised_where_it_is_asked_for_and_the_next_begins_anew(source: Source) -> None:
    fetching = Fetching(source)
    source.outcomes.put(WeightsError("torn"))
    with pytest.raises(WeightsError, match="torn"):
        fetching.get(manifest(3), wait_s=LONG_S)
    source.outcomes.put(None)
    assert fetching.get(manifest(3), wait_s=LONG_S) == got(3)


# -- the follower ------------------------------------------------------------------------------------------------


class Engine:
    policy_version = -1

    def __init__(self) -> None:
        self.applied: list[Path] = []

    def apply(self, files: list[Path], policy_version: int) -> None:
        self.applied += files
        self.policy_version = policy_version


class Streams:
    def __init__(self) -> None:
        self.announced: list[WeightManifest] = []

    def newest_weights(self) -> list[bytes]:
        return [encode(announced) for announced in reversed(self.announced)]


class Rig:
    def __init__(self, source: Source) -> None:
        self.now = 0.0
        self.streams, self.engine = Streams(), Engine()
        self.policy = PolicyFollower(self.streams, self.engine, 4, lambda: self.now, source)

    def follow(self, *versions: int, epoch: int = 1) -> None:
        self.streams.announced += [manifest(version, epoch) for version in versions]
        self.now += RETRY_S + 0.1
        self.policy.follow(now=True)

    def until_applied(self, version: int) -> None:
        for _ in range(600):  # each look waits a tenth of a second at most, while nothing may be generated
            if self.engine.policy_version == version:
                return
            self.follow()
        raise AssertionError(f"version {version} was never applied; {self.engine.policy_version} is")


def test_tokens_flow_while_weights_are_fetched(source: Source) -> None:
    rig = Rig(source)
    source.outcomes.put(None)
    rig.follow(0)
    rig.until_applied(0)
    rig.follow(1)
    rig.follow(2)
    assert (rig.engine.policy_version, rig.policy.published_version) == (0, 2)
    assert rig.policy.may_generate
    rig.follow(7)
    assert not rig.policy.may_generate  # the bound holds all the same
    source.outcomes.put(None)
    rig.until_applied(1)
    source.outcomes.put(None)
    rig.until_applied(7)
    assert rig.engine.applied == [Path(f"/files/{version}") for version in (0, 1, 7)]


def test_only_a_closed_gate_waits_for_files(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    rig = Rig(source)
    source.outcomes.put(None)
    rig.follow(0)
    rig.until_applied(0)

    def get(_fetching: Fetching, _wanted: WeightManifest, *, wait_s: float) -> None:
        waits.append(wait_s)

    monkeypatch.setattr(Fetching, "get", get)
    rig.follow(1)
    rig.follow(9)
    assert waits == [0.0, FETCH_WAIT_S]


def test_a_fetch_that_fails_keeps_the_old_weights_and_is_counted(source: Source) -> None:
    rig = Rig(source)
    source.outcomes.put(None)
    rig.follow(0)
    rig.until_applied(0)
    rig.follow(9)  # beyond the bound, so that each look waits
    source.outcomes.put(WeightsError("flipped"))
    for _ in range(600):
        if rig.policy.failures:
            break
        rig.follow()
    assert (rig.policy.failures, rig.policy.trouble, rig.engine.policy_version) == (1, "flipped", 0)
    source.outcomes.put(None)
    rig.until_applied(9)
    assert rig.policy.trouble == ""


def test_weights_of_a_learner_that_was_replaced_meanwhile_are_not_applied(source: Source) -> None:
    rig = Rig(source)
    rig.follow(5)
    rig.follow(3, epoch=2)
    source.outcomes.put(None)
    source.outcomes.put(None)
    rig.until_applied(3)
    assert rig.engine.applied == [Path("/files/3")]
    assert rig.policy.epoch == 2
