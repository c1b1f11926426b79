"""The archive's file format: what comes back, what a torn or damaged file costs, which record of a uid counts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.archive import ArchivedGroup, ArchiveReader, blocks_of, pack
from common.codec import encode
from common.messages import ChatMessage, Completion, Rollout, RolloutGroup, Sampling, SourceRef, Task, Verdict


def uid(number: int) -> str:
    return f"{number:032x}"


def record(number: int, *, sources: Sequence[int] = (), version: int = 1, at: float = 0.0) -> ArchivedGroup:
    shown = [
        SourceRef(
            uid=uid(n), sample=1, answer_hash="h", policy_version=0, weights_epoch=1, correct=True, verifier="exact@1"
        )
        for n in sources
    ]
    task = Task(
        uid=uid(number),
        objective="pointwise" if sources else "solve",
        messages=(ChatMessage.user("1+1"),),
        question="1+1",
        answer="2",
        verifier="exact",
        sampling=Sampling(n=2, max_new_tokens=4),
        sources=tuple(shown),
    )
    completion = Completion(
        token_ids=np.array([7, number], dtype=np.int32),
        logprobs=np.array([-1.0, -0.5], dtype=np.float32),
        spans=((0, 0),),
        finish_reason="stop",
        text=f"text {number}",
    )
    verdict = Verdict(status="ok", reward=1.0, verifier="exact@1")
    group = RolloutGroup(
        task=task,
        prompt_token_ids=np.array([1], dtype=np.int32),
        rollouts=(Rollout(completion=completion, verdict=verdict),) * 2,
        actor="a0",
        weights_epoch=1,
        generated_at=0.0,
    )
    return ArchivedGroup(
        group=group,
        outcome="trained",
        policy_version=version,
        staleness=0,
        content_staleness=0 if sources else None,
        advantages=(1.0, -1.0),
        loss=(0.5, -0.25),
        at=at,
    )


def append(path: Path, *records: ArchivedGroup, version: int = 1) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.writelines(pack(((one, encode(one)) for one in records), version))


def uids(reader: ArchiveReader) -> list[str]:
    return [one.uid for one in reader.groups()]


def test_everything_comes_back(tmp_path: Path) -> None:
    append(tmp_path / "e000001-000001.groups", record(3, sources=[1], at=5.0))
    [found] = ArchiveReader(tmp_path).groups()
    assert encode(found) == encode(record(3, sources=[1], at=5.0))
    assert found.group.rollouts[0].completion.token_ids.tolist() == [7, 3]


def test_groups_come_in_their_order_over_blocks_and_files_and_backwards(tmp_path: Path) -> None:
    append(tmp_path / "e000001-000001.groups", record(1), record(2))
    append(tmp_path / "e000001-000001.groups", record(3))
    append(tmp_path / "e000002-000001.groups", record(4))
    reader = ArchiveReader(tmp_path)
    assert uids(reader) == [uid(n) for n in (1, 2, 3, 4)]
    assert [one.uid for one in reader.newest_first()] == [uid(n) for n in (4, 3, 2, 1)]
    assert reader.uids() == [uid(n) for n in (1, 2, 3, 4)]
    assert reader.uids(uid(3)) == [uid(3)]


def test_a_directory_that_is_not_there_has_no_groups(tmp_path: Path) -> None:
    reader = ArchiveReader(tmp_path / "none")
    assert (uids(reader), reader.find(uid(1)), reader.made_from(uid(1)), reader.uids()) == ([], None, [], [])


def test_the_newest_record_of_a_uid_counts(tmp_path: Path) -> None:
    append(tmp_path / "e000001-000001.groups", record(1, version=4), record(2))
    append(tmp_path / "e000002-000001.groups", record(1, version=9), record(3, sources=[1], version=5))
    append(tmp_path / "e000003-000001.groups", record(3, sources=[1], version=6))
    reader = ArchiveReader(tmp_path)
    assert [(one.uid, one.policy_version) for one in reader.groups()] == [(uid(2), 1), (uid(1), 9), (uid(3), 6)]
    assert [(one.uid, one.policy_version) for one in reader.newest_first()] == [(uid(3), 6), (uid(1), 9), (uid(2), 1)]
    found = reader.find(uid(1))
    assert found is not None
    assert found.policy_version == 9
    assert [one.policy_version for one in reader.made_from(uid(1))] == [6]


def test_judge_groups_are_found_by_each_of_their_sources(tmp_path: Path) -> None:
    path = tmp_path / "e000001-000001.groups"
    append(path, record(1), record(5, sources=[1, 2], at=2.0), record(6, sources=[2], at=1.0))
    reader = ArchiveReader(tmp_path)
    assert [one.uid for one in reader.made_from(uid(1))] == [uid(5)]
    assert [one.uid for one in reader.made_from(uid(2))] == [uid(6), uid(5)]
    assert reader.made_from(uid(5)) == []


@pytest.mark.parametrize("lost", [1, 10, 200])
def test_a_torn_end_costs_its_block_only(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "e000001-000001.groups"
    append(path, record(1), record(2))
    append(path, record(3))
    path.write_bytes(path.read_bytes()[:-lost])
    append(tmp_path / "e000002-000001.groups", record(4))
    reader = ArchiveReader(tmp_path)
    assert uids(reader) == [uid(n) for n in (1, 2, 4)]
    assert reader.find(uid(3)) is None


def test_wherever_a_byte_is_wrong_the_rest_is_read_or_passed_over_and_nothing_is_made_up(tmp_path: Path) -> None:
    path = tmp_path / "e000001-000001.groups"
    for number in (1, 2, 3):
        append(path, record(number))
    whole, known = path.read_bytes(), {encode(record(number)) for number in (1, 2, 3)}
    for place in random.Random(0).sample(range(len(whole)), 150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        reader = ArchiveReader(tmp_path)
        found = [encode(one) for one in reader.groups()]
        assert set(found) <= known, place
        assert len(found) >= 2 or place < len(whole) * 2 / 3, place


def test_damaged_records_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "e000001-000001.groups"
    append(path, record(1), record(2))
    [block] = blocks_of(path)
    data = bytearray(path.read_bytes())
    data[block.offset + block.size // 2] ^= 0xFF
    path.write_bytes(data)
    reader = ArchiveReader(tmp_path)
    assert uids(reader) == []
    assert reader.unreadable == 2


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(tmp_path / "e000001-000001.groups", *[record(number) for number in range(50)])
    monkeypatch.setattr("common.archive.MOST_BYTES", 5000)
    reader = ArchiveReader(tmp_path)
    assert uids(reader) == []
    assert reader.unreadable == 50


def test_many_records_make_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.archive.BLOCK_BYTES", 3 * len(encode(record(1))))
    path = tmp_path / "e000001-000001.groups"
    append(path, *[record(number) for number in range(10)])
    assert [len(block.entries) for block in blocks_of(path)] == [3, 3, 3, 1]
    assert len(uids(ArchiveReader(tmp_path))) == 10


def test_records_without_a_known_loss(tmp_path: Path) -> None:
    append(tmp_path / "e000001-000001.groups", replace(record(1), outcome="filtered", loss=None))
    [found] = ArchiveReader(tmp_path).groups()
    assert (found.outcome, found.loss) == ("filtered", None)
