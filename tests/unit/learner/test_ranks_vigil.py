"""The vigil, with a store and a clock of the test's own."""

from __future__ import annotations

import pytest

from learner.ranks.place import Place
from learner.ranks.vigil import Failure, Vigil


class FakeStore:
    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.gone = False

    def set(self, key: str, value: str, /) -> None:
        self._answer()
        self.data[key] = value

    def get(self, key: str, /) -> bytes:
        self._answer()
        return self.data[key].encode()

    def check(self, keys: list[str], /) -> bool:
        self._answer()
        return all(key in self.data for key in keys)

    def _answer(self) -> None:
        if self.gone:
            raise RuntimeError("Connection closed\nframe #0")


class Job:
    """Vigils of ``world_size`` ranks on one store, with a clock that is moved by hand."""

    def __init__(self, world_size: int = 3) -> None:
        self.now = 0.0
        self.store = FakeStore()
        self.child: Failure | None = None
        self.vigils = [self._vigil(rank, world_size) for rank in range(world_size)]

    def _vigil(self, rank: int, world_size: int) -> Vigil:
        place = Place(rank=rank, world_size=world_size, local_rank=rank)
        died = (lambda: self.child) if rank == 0 else (lambda: None)
        return Vigil(self.store, place, died=died, silent_s=10.0, join_s=100.0, clock=lambda: self.now)

    def look(self, *ranks: int, after_s: float = 0.0) -> list[Failure | None]:
        self.now += after_s
        return [self.vigils[rank].look() for rank in ranks]


@pytest.fixture
def job() -> Job:
    return Job()


def test_a_job_in_which_all_give_signs_is_well(job: Job) -> None:
    for _ in range(5):
        assert job.look(0, 1, 2, after_s=4.0) == [None, None, None]


def test_rank_0_sees_a_silent_rank_and_the_others_see_a_silent_rank_0(job: Job) -> None:
    job.look(1, 2, 0)
    for _ in range(3):
        assert job.look(1, 0, after_s=3.0) == [None, None]
    [other, found] = job.look(1, 0, after_s=3.0)
    assert other is None
    assert found is not None
    assert (found.rank, found.reason) == (2, "has given no sign of life for 10 s")
    job.look(1)
    founds = [job.look(1, after_s=3.0)[0] for _ in range(4)]
    assert founds[:3] == [None, None, None]
    assert founds[3] is not None
    assert founds[3].rank == 0


def test_a_rank_that_slept_itself_gives_the_others_time_to_wake(job: Job) -> None:
    job.look(1, 2, 0)
    assert job.look(0, after_s=3600.0) == [None]
    for _ in range(3):
        assert job.look(1, 2, 0, after_s=4.0) == [None, None, None]


def test_a_rank_that_never_came_up_has_longer(job: Job) -> None:
    for _ in range(25):
        assert job.look(0, 1, after_s=4.0) == [None, None]
    [found, _] = job.look(0, 1, after_s=4.0)
    assert found is not None
    assert found.reason == "has never come up"


def test_what_a_failing_rank_says_is_known_to_all_and_only_the_first_is_believed(job: Job) -> None:
    job.vigils[1].fail(2, "failed: ValueError: of\nmany words")
    job.vigils[2].fail(1, "failed: RuntimeError: connection closed")
    expected = Failure(rank=1, exit_code=2, reason="failed: ValueError: of\nmany words")
    assert job.look(0, 2) == [expected, expected]
    assert expected.in_words().startswith("rank 1 failed: ValueError")


def test_a_dead_child_is_what_its_parent_says(job: Job) -> None:
    job.child = Failure(rank=2, exit_code=1, reason="ended with SIGKILL")
    assert job.look(0, 1) == [job.child, None]


def test_word_of_a_failure_goes_before_the_death_that_follows_it(job: Job) -> None:
    job.child = Failure(rank=1, exit_code=2, reason="ended with exit code 2")
    job.vigils[1].fail(2, "failed: the reason")
    [found] = job.look(0)
    assert found is not None
    assert found.reason == "failed: the reason"


def test_a_store_that_is_gone_is_a_rank_0_that_is_gone(job: Job) -> None:
    job.store.gone = True
    [found] = job.look(1)
    assert found == Failure(rank=0, exit_code=1, reason="is gone (Connection closed)")
    job.vigils[1].fail(1, "nobody to tell")  # and this is no error of its own


def test_the_thread_ends_the_process_unless_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.ranks.vigil.LOOK_S", 0.01)
    monkeypatch.setattr("learner.ranks.vigil.GRACE_S", 0.01)
    job, ended = Job(), []
    vigil = Vigil(job.store, Place(rank=1, world_size=2, local_rank=1), end=ended.append)
    job.store.gone = True
    vigil._watch()  # what the thread runs; it returns after the end
    assert [failure.rank for failure in ended] == [0]
    vigil.stop()
    vigil._watch()
    assert len(ended) == 1


def test_a_vigil_does_not_end_a_process_for_its_own_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.ranks.vigil.LOOK_S", 0.01)
    job, ended = Job(), []
    vigil = Vigil(job.store, Place(rank=1, world_size=2, local_rank=1), end=ended.append)
    vigil.fail(1, "failed: planted")
    vigil._watch()
    assert ended == []
