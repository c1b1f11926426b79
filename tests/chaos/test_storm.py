"""A short storm with a fixed seed, and the count at its end."""

from __future__ import annotations

from pathlib import Path

from chaos.rig import Rig
from chaos.storm import Storm, verdict


def test_a_short_storm_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        report = Storm(rig, seed=3, pace_s=0.15).run(items=300, faults=60)
    assert verdict(report) == []
    assert report.faults >= 60
    assert report.truth.items >= 300
    assert report.truth.trained > 0
