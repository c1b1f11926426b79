"""Lineage against the family tree of weights, walked node by node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidMessage
from common.lineage import ONE_LINE, Lineage, Start

Node = tuple[int, int]
BASE: Node = (0, 0)


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[int, Start], dict[int, int]]:
    """Epochs that each went on from a version that an older one had reached; and how far each came."""
    starts: dict[int, Start] = {}
    reached = {0: 0}
    for epoch in range(1, draw(st.integers(1, 6)) + 1):
        parent = draw(st.sampled_from(sorted(reached)))
        begun = starts[parent][1] if parent else 0
        version = draw(st.integers(begun, reached[parent]))
        starts[epoch] = (parent, version)
        reached[epoch] = version + draw(st.integers(0, 5))
    return starts, reached


def ancestors(node: Node, starts: dict[int, Start]) -> list[Node]:
    """The node and all weights it came from, youngest first; weights that two epochs share have one name."""
    epoch, version = node
    found = []
    while True:
        while epoch and version <= starts[epoch][1]:
            epoch = starts[epoch][0]
        found.append((epoch, version))
        if version == 0:
            return found
        version -= 1


@given(history=histories(), data=st.data())
def test_distance_is_the_way_through_the_tree(history: tuple[dict[int, Start], dict[int, int]], data) -> None:
    starts, reached = history
    epoch = max(starts)
    now = data.draw(st.integers(starts[epoch][1], reached[epoch]))
    other = data.draw(st.sampled_from(sorted(starts)))
    version = data.draw(st.integers(0 if other != epoch else now, reached[other])) if other != epoch else now
    mine, theirs = ancestors((epoch, now), starts), ancestors((other, version), starts)
    common = next(node for node in theirs if node in mine)
    lineage = Lineage.of(epoch, starts)
    assert lineage.distance(other, version, now) == mine.index(common) + theirs.index(common)
    assert lineage.is_orphan(other, version) == (theirs[0] not in ancestors((epoch, reached[epoch]), starts))
    assert Lineage.from_json(lineage.to_json()) == lineage


def test_a_run_that_was_never_restarted_has_one_line() -> None:
    assert ONE_LINE.distance(1, 3, 10) == 7
    assert not ONE_LINE.is_orphan(1, 3)


def test_an_epoch_nobody_knows_is_as_far_as_can_be() -> None:
    lineage = Lineage.of(3, {3: (1, 4), 1: (0, 0)})  # epoch 2 never recorded its start
    assert lineage.distance(2, 5, 6) == 6 + 5
    assert lineage.is_orphan(2, 1)


@pytest.mark.parametrize("text", ["", "[]", '{"epoch": 1}', '{"epoch": 1, "kept": {"a": 1}}'])
def test_what_is_no_lineage_is_named(text: str) -> None:
    with pytest.raises(InvalidMessage, match="no lineage"):
        Lineage.from_json(text)
