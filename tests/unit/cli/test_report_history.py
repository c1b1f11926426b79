"""metrics.jsonl: read as it grows, torn lines, resumed learners."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.report.history import STEP, MetricsReader, parse, read_history, total, without_repeats


def line(step: int, **metrics: float) -> bytes:
    return json.dumps({STEP: step, **metrics}).encode() + b"\n"


def test_a_reader_returns_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path)
    assert reader.read() == []
    path.write_bytes(line(1) + line(2))
    assert [row[STEP] for row in reader.read()] == [1, 2]
    assert reader.read() == []
    with path.open("ab") as file:
        file.write(line(3))
    assert [row[STEP] for row in reader.read()] == [3]


def test_a_torn_last_line_waits_until_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2)[:-5])
    reader = MetricsReader(path)
    assert [row[STEP] for row in reader.read()] == [1]
    assert reader.torn
    with path.open("ab") as file:
        file.write(line(2)[-5:])
    assert [row[STEP] for row in reader.read()] == [2]
    assert not reader.torn
    assert reader.skipped == 0


@given(st.lists(st.integers(1, 200), max_size=8))
def test_any_way_of_cutting_the_file_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    content = b"".join(line(step, lr=step / 7) for step in range(1, 7))
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    reader, rows = MetricsReader(path), []
    edges = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    for start, end in pairwise(edges):
        with path.open("ab") as file:
            file.write(content[start:end])
        rows += reader.read()
    assert [row[STEP] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert reader.skipped == 0


def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2) + line(3))
    reader = MetricsReader(path)
    reader.read()
    path.write_bytes(line(1))
    assert [row[STEP] for row in reader.read()] == [1]


@pytest.mark.parametrize(
    "broken", [b'{"policy_version": 1', b"[1]", b"7", b'{"lr": 1.0}', b"\xff\xfe", b'{"a": 1{"b": 2}']
)
def test_what_holds_no_metrics_is_no_row(broken: bytes) -> None:
    assert parse(broken) is None


def test_only_numbers_are_kept_and_nan_is_one() -> None:
    row = parse(b'{"policy_version": 3, "note": "x", "grad_norm": NaN}')
    assert row is not None
    assert set(row) == {STEP, "grad_norm"}
    assert np.isnan(row["grad_norm"])


def test_a_history_counts_what_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    # killed in the middle of line 4, resumed at the checkpoint of step 2, killed again
    path.write_bytes(line(1) + line(2) + line(3, lr=0.1) + line(4)[:9] + line(3, lr=0.2) + line(4) + line(5)[:7])
    history = read_history(path)
    assert history.skipped == 2  # the line that the torn one ran into, and the torn last one
    assert history.steps == [1, 2, 3, 4]
    assert history.repeated == 0


def test_the_steps_of_a_resumed_learner_replace_those_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line(step, epoch=1) for step in (1, 2, 3, 4)) + line(3, epoch=2))
    history = read_history(path)
    assert history.steps == [1, 2, 3]
    assert history.column("epoch") == [1, 1, 2]
    assert history.repeated == 2


@given(st.lists(st.integers(1, 30)))
def test_without_repeats_rises_and_ends_with_the_last_line(steps: list[int]) -> None:
    kept = [row[STEP] for row in without_repeats({STEP: float(step)} for step in steps)]
    assert kept == sorted(set(kept))
    assert kept[-1:] == steps[-1:]


def test_columns_have_gaps_where_nothing_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1, kl=0.5) + line(2))
    first, second = read_history(path).column("kl")
    assert first == 0.5
    assert np.isnan(second)
    assert total({"seconds/a": 1.0, "seconds/b": 2.0, "samples": 9.0}, "seconds/") == 3.0
