"""The simulation can fail: each bug that a service of this kind is likely to have is found, on seeds that find nothing
in the code as it is."""

from __future__ import annotations

import pytest

from simulation.campaign import campaign, run_some
from simulation.planted import BUGS

SEEDS = range(2000, 2300)
FOUND_BY = {
    "ack-before-checkpoint": "undurable",
    "xadd-then-xack": "does not balance",
    "id-only-ledger": "trained 2 times",
    "renew-without-owner-check": "by renewing a lost lease",
    "trim-ignores-recycler": "was deleted before recycler",
    "groups-from-now": "stands still",
    "no-fence": "after it was sampled",
}
"""Bug -> what is said when it is found."""


def test_every_bug_is_looked_for() -> None:
    assert FOUND_BY.keys() == BUGS.keys()


@pytest.mark.parametrize("bug", sorted(FOUND_BY))
def test_the_simulation_finds(bug: str) -> None:
    for seed in SEEDS:
        [result] = run_some(range(seed, seed + 1), bug)
        if any(FOUND_BY[bug] in violation for violation in result.violations):
            return
    pytest.fail(f"{len(SEEDS)} schedules do not find {bug}")


def test_without_a_bug_the_same_seeds_find_nothing() -> None:
    *_, summary = campaign(SEEDS, processes=2)
    assert {result.seed: result.violations for result in summary.failed} == {}
